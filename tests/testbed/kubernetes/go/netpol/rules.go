package main

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// world is all that the rules follow from.
type world struct {
	pods     []*core.Pod
	policies []*networking.NetworkPolicy
	labels   map[string]labels.Set // of the namespaces
}

// The table. Its two maps send a packet to the chain of the pod it leaves or reaches; pods that no policy selects are in
// neither. What a chain allows goes on to the next check, everything else is dropped at its end. The node's own packets
// pass no forward hook, so the kubelet's probes always arrive. Pods have no IPv6, except by link-local addresses on the
// bridge, which must not be a way around.
const table = `table inet testbed_netpol
delete table inet testbed_netpol
table inet testbed_netpol {
%s  map leaving {
    type ipv4_addr : verdict
%s  }
  map reaching {
    type ipv4_addr : verdict
%s  }
  chain between_pods {
    type filter hook forward priority filter - 1; policy accept;
    meta nfproto ipv6 drop
    ct state established,related accept
    ip saddr vmap @leaving
    ip daddr vmap @reaching
  }
  chain to_the_node {
    type filter hook input priority filter - 1; policy accept;
    ct state established,related accept
    ip saddr vmap @leaving
  }
}
`

// render writes the whole table; the same world gives the same text.
func render(w world) string {
	sort.Slice(w.pods, func(i, j int) bool { return key(w.pods[i]) < key(w.pods[j]) })
	sort.Slice(w.policies, func(i, j int) bool { return key(w.policies[i]) < key(w.policies[j]) })
	var chains, leaving, reaching strings.Builder
	for _, pod := range w.pods {
		address := addressOf(pod)
		if address == "" {
			continue
		}
		id := strings.ReplaceAll(address, ".", "_")
		if rules, isolated := w.egress(pod); isolated {
			fmt.Fprintf(&chains, "  chain from_%s {\n%s    counter drop\n  }\n", id, rules)
			fmt.Fprintf(&leaving, "%s : jump from_%s, ", address, id)
		}
		if rules, isolated := w.ingress(pod); isolated {
			fmt.Fprintf(&chains, "  chain to_%s {\n%s    counter drop\n  }\n", id, rules)
			fmt.Fprintf(&reaching, "%s : jump to_%s, ", address, id)
		}
	}
	return fmt.Sprintf(table, chains.String(), elements(leaving.String()), elements(reaching.String()))
}

func key(object meta.Object) string { return object.GetNamespace() + "/" + object.GetName() }

func elements(list string) string {
	if list == "" {
		return ""
	}
	return "    elements = { " + strings.TrimSuffix(list, ", ") + " }\n"
}

// addressOf is empty for pods that have no address of their own (yet, any more, or ever).
func addressOf(pod *core.Pod) string {
	if pod.Spec.HostNetwork || pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed {
		return ""
	}
	return pod.Status.PodIP
}

func selects(selector *meta.LabelSelector, set labels.Set) bool {
	parsed, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(set)
}

// applies says whether a policy is about a pod, in one of the two directions.
func applies(policy *networking.NetworkPolicy, pod *core.Pod, direction networking.PolicyType) bool {
	if policy.Namespace != pod.Namespace || !selects(&policy.Spec.PodSelector, pod.Labels) {
		return false
	}
	for _, named := range policy.Spec.PolicyTypes { // the API server always fills this in
		if named == direction {
			return true
		}
	}
	return false
}

func (w world) ingress(pod *core.Pod) (rules string, isolated bool) {
	var text strings.Builder
	for _, policy := range w.policies {
		if !applies(policy, pod, networking.PolicyTypeIngress) {
			continue
		}
		isolated = true
		for _, rule := range policy.Spec.Ingress {
			peers, _ := w.peers(policy.Namespace, rule.From, "saddr")
			for _, peer := range peers {
				for _, port := range ports(rule.Ports, []*core.Pod{pod}) {
					fmt.Fprintf(&text, "    %s%sreturn\n", peer, port)
				}
			}
		}
	}
	return text.String(), isolated
}

func (w world) egress(pod *core.Pod) (rules string, isolated bool) {
	var text strings.Builder
	for _, policy := range w.policies {
		if !applies(policy, pod, networking.PolicyTypeEgress) {
			continue
		}
		isolated = true
		for _, rule := range policy.Spec.Egress {
			peers, pods := w.peers(policy.Namespace, rule.To, "daddr")
			for _, peer := range peers {
				for _, port := range ports(rule.Ports, pods) {
					fmt.Fprintf(&text, "    %s%sreturn\n", peer, port)
				}
			}
		}
	}
	return text.String(), isolated
}

// peers gives the matches for "any of these peers", and the pods among them, in which named ports are looked up.
// No peers at all means anybody.
func (w world) peers(namespace string, list []networking.NetworkPolicyPeer, side string) (matches []string, pods []*core.Pod) {
	if len(list) == 0 {
		return []string{""}, w.pods
	}
	var addresses []string
	for _, peer := range list {
		if peer.IPBlock != nil {
			if match := block(peer.IPBlock, side); match != "" {
				matches = append(matches, match)
			}
			continue
		}
		for _, pod := range w.pods {
			if addressOf(pod) != "" && w.isPeer(namespace, peer, pod) {
				addresses = append(addresses, addressOf(pod))
				pods = append(pods, pod)
			}
		}
	}
	if len(addresses) > 0 {
		matches = append(matches, fmt.Sprintf("ip %s { %s } ", side, unique(addresses)))
	}
	return matches, pods
}

func (w world) isPeer(namespace string, peer networking.NetworkPolicyPeer, pod *core.Pod) bool {
	if peer.NamespaceSelector == nil {
		if pod.Namespace != namespace {
			return false
		}
	} else if set, known := w.labels[pod.Namespace]; !known || !selects(peer.NamespaceSelector, set) {
		return false
	}
	return peer.PodSelector == nil || selects(peer.PodSelector, pod.Labels)
}

// block is empty for IPv6: no pod has such an address, so there is nothing to allow.
func block(block *networking.IPBlock, side string) string {
	isIPv4 := func(cidr string) bool {
		prefix, err := netip.ParsePrefix(cidr)
		return err == nil && prefix.Addr().Is4()
	}
	if !isIPv4(block.CIDR) {
		return ""
	}
	match := fmt.Sprintf("ip %s %s ", side, block.CIDR)
	for _, except := range block.Except {
		if isIPv4(except) {
			match += fmt.Sprintf("ip %s != %s ", side, except)
		}
	}
	return match
}

// ports gives the matches for "any of these ports". A named port means another number in each pod, so it is matched
// together with the pod's address. No ports at all means everything.
func ports(list []networking.NetworkPolicyPort, targets []*core.Pod) (matches []string) {
	if len(list) == 0 {
		return []string{""}
	}
	for _, port := range list {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		name := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			matches = append(matches, fmt.Sprintf("meta l4proto %s ", name))
		case port.Port.Type == intstr.String:
			var pairs []string
			for _, pod := range targets {
				if number := named(pod, port.Port.StrVal, protocol); number != 0 && addressOf(pod) != "" {
					pairs = append(pairs, fmt.Sprintf("%s . %d", addressOf(pod), number))
				}
			}
			if len(pairs) > 0 {
				matches = append(matches, fmt.Sprintf("ip daddr . %s dport { %s } ", name, unique(pairs)))
			}
		case port.EndPort != nil:
			matches = append(matches, fmt.Sprintf("%s dport %d-%d ", name, port.Port.IntVal, *port.EndPort))
		default:
			matches = append(matches, fmt.Sprintf("%s dport %d ", name, port.Port.IntVal))
		}
	}
	return matches
}

// named finds a pod's port by name, in its containers and in those that start before them and stay.
func named(pod *core.Pod, name string, protocol core.Protocol) int32 {
	containers := append([]core.Container{}, pod.Spec.Containers...)
	for _, container := range append(containers, pod.Spec.InitContainers...) {
		for _, port := range container.Ports {
			if port.Name == name && port.Protocol == protocol {
				return port.ContainerPort
			}
		}
	}
	return 0
}

func unique(list []string) string {
	sort.Strings(list)
	kept := list[:0]
	for i, item := range list {
		if i == 0 || item != list[i-1] {
			kept = append(kept, item)
		}
	}
	return strings.Join(kept, ", ")
}
