// Command volumes gives a one-node cluster its storage: it makes a directory and a `local` PersistentVolume for each
// claim of our StorageClasses, lets claims grow, and removes volume and directory when the claim is gone.
//
// `local` and not `hostPath`, because only for the former the kubelet applies a pod's fsGroup. A directory has no size,
// so growth is a matter of record alone: the volume's capacity first, the claim's status after it, as a driver would.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelist "k8s.io/client-go/listers/core/v1"
	storagelist "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	provisioner   = "testbed.local/directory"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	selectedNode  = "volume.kubernetes.io/selected-node"
)

type keeper struct {
	client    kubernetes.Interface
	claims    corelist.PersistentVolumeClaimLister
	volumes   corelist.PersistentVolumeLister
	classes   storagelist.StorageClassLister
	directory string
	node      string
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	directory := flag.String("directory", "", "where the volumes' directories are made")
	node := flag.String("node", "", "the node's name")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 100, 200
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	claims, volumes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes()
	classes := factory.Storage().V1().StorageClasses()

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
	for _, informer := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer(), classes.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			log.Fatal(err)
		}
	}
	keeper := keeper{client, claims.Lister(), volumes.Lister(), classes.Lister(), filepath.Clean(*directory), *node}
	ctx := context.Background()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		keeper.pass(ctx)
		select {
		case <-changed:
		case <-time.After(2 * time.Second): // what failed is tried again
		}
	}
}

// pass brings everything one step nearer to what is wanted; each step may be repeated.
func (k *keeper) pass(ctx context.Context) {
	claims, _ := k.claims.List(labels.Everything())
	for _, claim := range claims {
		if err := k.provide(ctx, claim); err != nil {
			log.Printf("claim %s/%s: %v", claim.Namespace, claim.Name, err)
		}
	}
	volumes, _ := k.volumes.List(labels.Everything())
	for _, volume := range volumes {
		if err := k.reclaim(ctx, volume); err != nil {
			log.Printf("volume %s: %v", volume.Name, err)
		}
	}
}

func (k *keeper) provide(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	if claim.Spec.VolumeName != "" {
		return k.grow(ctx, claim)
	}
	class, err := k.classes.Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != provisioner {
		return nil // somebody else's
	}
	node := claim.Annotations[selectedNode]
	if node == "" {
		if class.VolumeBindingMode != nil && *class.VolumeBindingMode == storage.VolumeBindingWaitForFirstConsumer {
			return nil // no pod has asked for it yet
		}
		node = k.node
	}
	name := "pvc-" + string(claim.UID)
	if _, err := k.volumes.Get(name); err == nil {
		return nil
	}
	path := filepath.Join(k.directory, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever the umask said
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: *class.ReclaimPolicy,
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: path}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
				MatchExpressions: []core.NodeSelectorRequirement{{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
	_, err = k.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		return err
	}
	log.Printf("made %s for %s/%s", name, claim.Namespace, claim.Name)
	return nil
}

// grow answers a claim that asks for more than it has. The API server has let that pass, so the class allows it.
func (k *keeper) grow(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	volume, err := k.volumes.Get(claim.Spec.VolumeName)
	if err != nil || volume.Annotations[provisionedBy] != provisioner || claim.Status.Phase != core.ClaimBound {
		return nil
	}
	wanted := claim.Spec.Resources.Requests[core.ResourceStorage]
	size := map[string]resource.Quantity{"storage": wanted}
	if has := volume.Spec.Capacity[core.ResourceStorage]; has.Cmp(wanted) < 0 {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"capacity": size}})
		if err != nil {
			return err
		}
		if _, err := k.client.CoreV1().PersistentVolumes().Patch(ctx, volume.Name, types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
			return fmt.Errorf("growing %s: %w", volume.Name, err)
		}
		log.Printf("grew %s to %s for %s/%s", volume.Name, wanted.String(), claim.Namespace, claim.Name)
	}
	if has := claim.Status.Capacity[core.ResourceStorage]; has.Cmp(wanted) < 0 {
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"capacity": size, "conditions": nil}})
		if err != nil {
			return err
		}
		_, err = k.client.CoreV1().PersistentVolumeClaims(claim.Namespace).
			Patch(ctx, claim.Name, types.MergePatchType, patch, meta.PatchOptions{}, "status")
		return err
	}
	return nil
}

// reclaim removes a volume whose claim is gone, unless it is to be kept.
func (k *keeper) reclaim(ctx context.Context, volume *core.PersistentVolume) error {
	if volume.Annotations[provisionedBy] != provisioner || volume.Spec.Local == nil ||
		volume.Status.Phase != core.VolumeReleased || volume.DeletionTimestamp != nil ||
		volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	if filepath.Dir(volume.Spec.Local.Path) != k.directory {
		return fmt.Errorf("its directory %s is not one of ours", volume.Spec.Local.Path)
	}
	if err := os.RemoveAll(volume.Spec.Local.Path); err != nil {
		return err
	}
	err := k.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if err != nil && !errors.IsNotFound(err) {
		return err
	}
	log.Printf("removed %s", volume.Name)
	return nil
}
