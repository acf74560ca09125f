# What is built, and where the results are kept. A change to a recipe gives its result another name, so that it is built anew.
# shellcheck shell=bash

KUBERNETES_VERSION=1.34.4 # as in go/go.mod
COREDNS_VERSION=1.13.1    # as in coredns/go.mod

KUBERNETES=$TESTBED/kubernetes
NODE_BIN=$CACHE/kubernetes-$KUBERNETES_VERSION-$(recipe_key "$KUBERNETES"/go/go.* "$KUBERNETES"/go/kube/*.go)
ADDONS_BIN=$CACHE/addons-$(recipe_key "$KUBERNETES"/go/go.* "$KUBERNETES"/go/{volumes,netpol}/*.go)
COREDNS_BIN=$CACHE/coredns-$COREDNS_VERSION-$(recipe_key "$KUBERNETES"/coredns/*)
