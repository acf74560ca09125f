// Fetches a binding's credentials with nothing but Go's own library.
// BINDING names the file with the credentials object of the bind.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Binding is the part of the credentials that says where the secret is.
type Binding struct {
	Keycloak struct {
		TokenURI     string `json:"token_uri"`
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	Vault struct {
		Address, Namespace, Role string
		AuthPath                 string `json:"auth_path"`
		DataPath                 string `json:"data_path"`
	}
}

// Secret is what Vault holds for the binding.
type Secret struct {
	Data     map[string]any
	Metadata struct{ Version int }
}

var client = http.Client{Timeout: 15 * time.Second}

func ask(request *http.Request, answer any) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", request.URL.Host, response.Status)
	}
	return json.NewDecoder(io.LimitReader(response.Body, 2<<20)).Decode(answer)
}

// Fetch proves to Keycloak whose binding it is, logs in to Vault and reads the secret.
func Fetch(b Binding) (*Secret, error) {
	// 1. Keycloak: whose binding this is.
	form := strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode())
	request, err := http.NewRequest("POST", b.Keycloak.TokenURI, form)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(url.QueryEscape(b.Keycloak.ClientID), url.QueryEscape(b.Keycloak.ClientSecret))
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if err := ask(request, &token); err != nil {
		return nil, err
	}

	// 2. Vault: a token for this binding's secret alone.
	login, err := json.Marshal(map[string]string{"role": b.Vault.Role, "jwt": token.AccessToken})
	if err != nil {
		return nil, err
	}
	request, err = http.NewRequest("POST", b.Vault.Address+"/v1/auth/"+b.Vault.AuthPath+"/login", bytes.NewReader(login))
	if err != nil {
		return nil, err
	}
	if b.Vault.Namespace != "" {
		request.Header.Set("X-Vault-Namespace", b.Vault.Namespace)
	}
	var session struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		}
	}
	if err := ask(request, &session); err != nil {
		return nil, err
	}

	// 3. The secret.
	request, err = http.NewRequest("GET", b.Vault.Address+"/"+b.Vault.DataPath, nil)
	if err != nil {
		return nil, err
	}
	if b.Vault.Namespace != "" {
		request.Header.Set("X-Vault-Namespace", b.Vault.Namespace)
	}
	request.Header.Set("X-Vault-Token", session.Auth.ClientToken)
	var answer struct{ Data Secret }
	if err := ask(request, &answer); err != nil {
		return nil, err
	}
	return &answer.Data, nil
}

func main() {
	text, err := os.ReadFile(os.Getenv("BINDING"))
	if err != nil {
		log.Fatal(err)
	}
	var binding Binding
	if err := json.Unmarshal(text, &binding); err != nil {
		log.Fatal(err)
	}
	secret, err := Fetch(binding)
	if err != nil {
		log.Fatal(err)
	}
	d := secret.Data
	fmt.Printf("%v at %v:%v as %v, version %d\n", d["type"], d["host"], d["port"], d["username"], secret.Metadata.Version)
}
