// Command netpol enforces NetworkPolicy on a one-node cluster: it watches pods, namespaces and policies and replaces
// one nftables table, whole and at once, whenever the rules that follow from them change (rules.go).
//
// A new pod is covered as soon as its address is known, a fraction of a second after its sandbox exists.
package main

import (
	"context"
	"flag"
	"log"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), 0)
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()

	changed := make(chan struct{}, 1)
	notice := func() {
		select {
		case changed <- struct{}{}:
		default: // one notice is enough
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notice() }, UpdateFunc: func(any, any) { notice() }, DeleteFunc: func(any) { notice() },
	}
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			log.Fatal(err)
		}
	}
	ctx := context.Background()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	inForce := ""
	notice()
	for range changed {
		world := world{}
		world.pods, _ = pods.Lister().List(labels.Everything())
		world.policies, _ = policies.Lister().List(labels.Everything())
		all, _ := namespaces.Lister().List(labels.Everything())
		world.labels = map[string]labels.Set{}
		for _, namespace := range all {
			world.labels[namespace.Name] = namespace.Labels
		}
		rules := render(world)
		if rules == inForce {
			continue
		}
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(rules)
		if output, err := nft.CombinedOutput(); err != nil {
			log.Printf("nft: %v: %s\n%s", err, output, rules)
			time.AfterFunc(time.Second, notice)
			continue
		}
		inForce = rules
		log.Printf("in force: %d policies, %d bytes", len(world.policies), len(rules))
	}
}
