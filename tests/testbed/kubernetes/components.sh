# The node's programs, one function each that starts it: sourced by `up` and by `component`, so that a test may stop one
# and start it again exactly as it was.
#
# All of it runs in the node's network namespace; files are below RUN. Ports are the usual ones: nobody else is in there.
# shellcheck shell=bash

NODE=testbed
POD_SUBNET=10.244.0.0/24
POD_GATEWAY=10.244.0.1
BRIDGE=cni0
API=https://$NODE_ADDRESS:6443
CONTAINERD=$RUN/containerd/containerd.sock
PKI=$RUN/pki
BIN=$RUN/bin

COMPONENTS=(etcd containerd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy volumes netpol)

# Both bounded: they would wait for long, or for ever, on something that is dead.
node_kubectl() { inside timeout 60 "$BIN/kubectl" --kubeconfig "$RUN/kubeconfig" "$@"; }
node_ctr() { timeout 120 ctr --address "$CONTAINERD" -n k8s.io "$@"; }
probe() { inside curl -skf --max-time 3 "$1"; }

start_inside() { # start_inside NAME COMMAND…
  local name=$1
  shift
  start "$name" nsenter --net="$NETNS" "$@"
}

# The machine may lose power; a testbed's data need not outlive that.
start_etcd() {
  start_inside etcd etcd --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380
}
await_etcd() { wait_until 30 etcd probe http://127.0.0.1:2379/health; }

start_containerd() {
  put "$RUN/containerd/cni/10-testbed.conflist" <<END
{"cniVersion": "1.0.0", "name": "chandler-testbed", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$RUN/containerd/addresses",
            "ranges": [[{"subnet": "$POD_SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  # Without restrict_oom_score_adj no sandbox starts where root may not lower that score; likewise the others are for
  # machines that lack AppArmor or the hugetlb hierarchy.
  put "$RUN/containerd/config.toml" <<END
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$CONTAINERD"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "testbed.local/pause:1"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_selinux = false
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/containerd/cni"
END
  start_inside containerd containerd --config "$RUN/containerd/config.toml"
}
await_containerd() { wait_until 30 containerd node_ctr --connect-timeout 2s version; }

start_kube-apiserver() {
  start_inside kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 --bind-address="$NODE_ADDRESS" --secure-port=6443 --advertise-address="$NODE_ADDRESS" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --token-auth-file="$PKI/tokens.csv" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-client-certificate="$PKI/kubelet-client.crt" \
    --kubelet-client-key="$PKI/kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/service-accounts.pub" \
    --service-account-signing-key-file="$PKI/service-accounts.key" --service-cluster-ip-range="$SERVICE_RANGE" --allow-privileged=true
}
await_kube-apiserver() { wait_until 60 kube-apiserver node_kubectl --request-timeout=3s get --raw /readyz; }

# Its own limit of requests would make everything here slow.
start_kube-controller-manager() {
  start_inside kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig="$RUN/controllers.kubeconfig" \
    --service-account-private-key-file="$PKI/service-accounts.key" --root-ca-file="$PKI/ca.crt" --use-service-account-credentials=true \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --leader-elect=false --kube-api-qps=300 --kube-api-burst=600 --bind-address=127.0.0.1
}
await_kube-controller-manager() { wait_until 60 kube-controller-manager node_kubectl -n default get serviceaccount default; }

start_kube-scheduler() {
  start_inside kube-scheduler "$BIN/kube-scheduler" --kubeconfig="$RUN/scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
}
await_kube-scheduler() { wait_until 30 kube-scheduler probe https://127.0.0.1:10259/healthz; }

start_kubelet() {
  mkdir -p "$RUN/kubelet-plugins"
  put "$RUN/no-resolv.conf" </dev/null # pods ask the cluster's name server and nobody else
  put "$RUN/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$IDENTITY
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix://$CONTAINERD
address: $NODE_ADDRESS
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS: [$DNS_ADDRESS]
resolvConf: $RUN/no-resolv.conf
podLogsDir: $RUN/pods-log
volumePluginDir: $RUN/kubelet-plugins
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
imageMinimumGCAge: 24h
# A share of a large disk is a lot, and somebody else's build may fill it for a moment.
evictionHard: {memory.available: 100Mi, nodefs.available: 100Mi, nodefs.inodesFree: 1%, imagefs.available: 100Mi, imagefs.inodesFree: 1%}
evictionPressureTransitionPeriod: 5s
maxPods: 110
healthzBindAddress: 127.0.0.1
END
  start_inside kubelet "$BIN/kubelet" --config="$RUN/kubelet.yaml" --kubeconfig="$RUN/node.kubeconfig" \
    --root-dir="$RUN/kubelet" --hostname-override="$NODE" --node-ip="$NODE_ADDRESS"
}
await_kubelet() { wait_until 60 "the node is ready" node_kubectl wait --for=condition=Ready --timeout=4s "node/$NODE"; }

start_kube-proxy() {
  put "$RUN/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
clusterCIDR: $POD_RANGE
detectLocalMode: ClusterCIDR
hostnameOverride: $NODE
bindAddress: $NODE_ADDRESS
nodePortAddresses: [$NODE_ADDRESS/32]
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 200ms}
END
  start_inside kube-proxy "$BIN/kube-proxy" --config="$RUN/proxy.yaml"
}
await_kube-proxy() { wait_until 30 kube-proxy probe http://127.0.0.1:10256/healthz; }

start_volumes() { start_inside volumes "$BIN/volumes" --kubeconfig "$RUN/kubeconfig" --directory "$RUN/volumes" --node "$NODE"; }
await_volumes() { wait_until 10 "volume provisioner" alive volumes; }

start_netpol() { start_inside netpol "$BIN/netpol" --kubeconfig "$RUN/kubeconfig"; }
await_netpol() { wait_until 30 "policy enforcement" inside nft list table inet testbed_netpol; }
