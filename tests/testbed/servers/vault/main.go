// Command vault is HashiCorp Vault, built from its module: a server for tests, never shipped.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
