// Those controllers of cert-manager that make certificates with an authority kept in a Secret (a CA issuer), and no
// others: its own command is in a module that cannot be imported.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
)

var names = []string{
	clusterissuers.ControllerName,
	approver.ControllerName,
	ca.CRControllerName,
	issuing.ControllerName,
	keymanager.ControllerName,
	readiness.ControllerName,
	requestmanager.ControllerName,
	revisionmanager.ControllerName,
	trigger.ControllerName,
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	authorities := flag.String("cluster-resource-namespace", "cert-manager", "where the Secrets of ClusterIssuers are")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         *kubeconfig,
		KubernetesAPIQPS:   50,
		KubernetesAPIBurst: 100,
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: *authorities},
	})
	if err != nil {
		return err
	}
	started, err := factory.Build()
	if err != nil {
		return err
	}
	ended := make(chan error, len(names))
	for _, name := range names {
		construct, known := controller.Known()[name]
		if !known {
			return fmt.Errorf("this cert-manager has no controller %s", name)
		}
		loop, err := construct(factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		go func() { ended <- loop.Run(2, ctx) }()
	}
	started.SharedInformerFactory.Start(ctx.Done())
	started.KubeSharedInformerFactory.Start(ctx.Done())
	select {
	case <-ctx.Done():
		// Each has until then to end what it is at.
		for range names {
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				return nil
			}
		}
		return nil
	case err := <-ended:
		return fmt.Errorf("a controller has ended: %w", err)
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
