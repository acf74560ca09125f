package example;

import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Base64;
import java.util.Map;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.env.EnvironmentPostProcessor;
import org.springframework.core.env.ConfigurableEnvironment;
import org.springframework.core.env.MapPropertySource;

/**
 * Makes the binding's credentials properties ({@code binding.username}, {@code binding.jdbcUrl}, …) before anything asks
 * for one. BINDING names the file with the credentials object of the bind.
 */
public class VaultBinding implements EnvironmentPostProcessor {
    private static final ObjectMapper JSON = new ObjectMapper();
    private final HttpClient client = HttpClient.newHttpClient();

    @Override
    public void postProcessEnvironment(ConfigurableEnvironment environment, SpringApplication application) {
        try {
            JsonNode secret = fetch(JSON.readTree(Path.of(environment.getRequiredProperty("BINDING")).toFile()));
            var found = new java.util.HashMap<String, Object>();
            JSON.convertValue(secret.get("data"), new TypeReference<Map<String, Object>>() {})
                .forEach((name, value) -> found.put("binding." + name, value));
            found.put("binding.version", secret.get("metadata").get("version").asInt());
            environment.getPropertySources().addFirst(new MapPropertySource("binding", found));
        } catch (IOException | InterruptedException e) {
            throw new IllegalStateException("The binding's credentials cannot be fetched", e);
        }
    }

    private JsonNode fetch(JsonNode binding) throws IOException, InterruptedException {
        JsonNode keycloak = binding.get("keycloak");
        JsonNode vault = binding.get("vault");

        // 1. Keycloak: whose binding this is.
        String login = keycloak.get("client_id").asText() + ":" + keycloak.get("client_secret").asText();
        String basic = Base64.getEncoder().encodeToString(login.getBytes(StandardCharsets.UTF_8));
        JsonNode token = ask(request(keycloak.get("token_uri").asText())
            .header("Authorization", "Basic " + basic)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .POST(BodyPublishers.ofString("grant_type=client_credentials")));

        // 2. Vault: a token for this binding's secret alone.
        String address = vault.get("address").asText();
        String body = JSON.writeValueAsString(
            Map.of("role", vault.get("role").asText(), "jwt", token.get("access_token").asText()));
        JsonNode session = ask(inNamespace(vault, request(address + "/v1/auth/" + vault.get("auth_path").asText() + "/login"))
            .POST(BodyPublishers.ofString(body)));

        // 3. The secret.
        return ask(inNamespace(vault, request(address + "/" + vault.get("data_path").asText()))
            .header("X-Vault-Token", session.get("auth").get("client_token").asText())).get("data");
    }

    private static HttpRequest.Builder request(String url) {
        return HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(15));
    }

    private static HttpRequest.Builder inNamespace(JsonNode vault, HttpRequest.Builder request) {
        return vault.hasNonNull("namespace")
            ? request.header("X-Vault-Namespace", vault.get("namespace").asText())
            : request;
    }

    private JsonNode ask(HttpRequest.Builder request) throws IOException, InterruptedException {
        var answer = client.send(request.build(), BodyHandlers.ofInputStream());
        try (var body = answer.body()) {
            if (answer.statusCode() != 200) {
                throw new IOException(answer.uri().getHost() + " answered " + answer.statusCode());
            }
            return JSON.readTree(body);
        }
    }
}
