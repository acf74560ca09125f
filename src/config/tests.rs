#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// What `chandler platforms hash-password` prints for some password.
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE";

/// A directory with everything a correct configuration names.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(room.path("data/catalog")).unwrap();
        room.secret("password", "correct horse battery", 0o600);
        room.secret("key", "c2VjcmV0", 0o400);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn secret(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load_as(&self, file: &str, text: &str, environment: &[(&str, &str)]) -> Loaded {
        fs::write(self.path(file), text).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(&self.path(file)), environment)
    }

    fn load(&self, text: &str, environment: &[(&str, &str)]) -> Loaded {
        self.load_as("chandler.yaml", text, environment)
    }
}

/// The least that `chandler serve` accepts, with `more` added as further sections.
fn least(more: &str) -> String {
    format!(
        "store: {{url: 'sqlite:///tmp/chandler.db'}}\n\
         catalog: {{dirs: [data]}}\n\
         provisioner: {{local: {{dir: instances}}}}\n\
         secrets: {{keys: [{{label: one, file: key}}]}}\n\
         platforms: [{{name: cf, credentials: [{{username: cf, password_file: password}}]}}]\n{more}"
    )
}

fn paths(loaded: &Loaded) -> Vec<&str> {
    loaded
        .problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect()
}

#[test]
fn the_least_is_enough_and_relative_to_the_file() {
    let room = Room::new();
    let (config, warnings) = room.load(&least(""), &[]).into_config().unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.provisioner.local.dir, room.path("instances"));
    assert_eq!(config.secrets.keys[0].file, room.path("key"));
    assert_eq!(config.secrets.primary_label(), "one");
    assert_eq!(config.osb.min_minor(), 13);
    assert_eq!(config.provisioner.local.ports.ports(), 20000..=29999);
    let Proof::Password(password) = config.platforms[0].credentials[0].proof().unwrap() else {
        panic!("a password is given");
    };
    assert_eq!(password.expose(), "correct horse battery");
}

#[test]
fn yaml_toml_and_json_say_the_same() {
    let room = Room::new();
    let yaml = room.load(&least("http: {workers: 3}\nlog:\n"), &[]);
    let toml = room.load_as(
        "chandler.toml",
        "[store]\nurl = 'sqlite:///tmp/chandler.db'\n[catalog]\ndirs = ['data']\n[http]\nworkers = 3\n\
         [provisioner.local]\ndir = 'instances'\n[[secrets.keys]]\nlabel = 'one'\nfile = 'key'\n\
         [[platforms]]\nname = 'cf'\n[[platforms.credentials]]\nusername = 'cf'\npassword_file = 'password'\n",
        &[],
    );
    let json = room.load_as(
        "chandler.json",
        &serde_json::to_string(&yaml.config).unwrap(),
        &[],
    );
    for loaded in [&yaml, &toml, &json] {
        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.show(), yaml.show());
    }
    // What `show` prints is itself a configuration.
    let again = room.load(&yaml.show(), &[]);
    assert_eq!(
        (again.problems.as_slice(), again.show()),
        ([].as_slice(), yaml.show())
    );
}

#[test]
fn the_environment_wins_and_is_named() {
    let room = Room::new();
    let loaded = room.load(
        &least("http: {workers: 3}"),
        &[
            ("CHANDLER__HTTP__WORKERS", "5"),
            ("CHANDLER__HTTP__LISTEN", "[::1]:9000"),
            ("CHANDLER__OSB__REQUIRE_GUIDS", "true"),
            ("CHANDLER__OSB__MIN_VERSION", "2.14"),
            ("CHANDLER__CATALOG__DIRS", "[data, ./data]"),
            ("CHANDLER__PLATFORMS__0__CREDENTIALS__1__USERNAME", "12345"),
            ("CHANDLER__PLATFORMS__0__CREDENTIALS__1__PASSWORD_HASH", HASH),
            ("CHANDLER__PLATFORMS__1__NAME", "k8s"),
            ("CHANDLER__PLATFORMS__1__CREDENTIALS__0__USERNAME", "k8s"),
            (
                "CHANDLER__PLATFORMS__1__CREDENTIALS__0__PASSWORD_FILE",
                "password",
            ),
            ("CHANDLER_CACHE", "/not/a/setting"),
            ("HTTP__WORKERS", "7"),
        ],
    );
    assert_eq!(loaded.problems, []);
    let config = &loaded.config;
    assert_eq!(
        (
            config.http.workers,
            config.http.listen.port(),
            config.osb.min_minor()
        ),
        (5, 9000, 14)
    );
    assert!(config.osb.require_guids);
    assert_eq!(config.catalog.dirs.len(), 2);
    assert_eq!(config.platforms[0].credentials[1].username, "12345");
    assert_eq!(config.platforms[1].name, "k8s");
    assert!(
        loaded
            .show()
            .contains("# http.workers is set by CHANDLER__HTTP__WORKERS")
    );
}

#[test]
fn lists_of_more_than_ten_members_come_in_order_from_the_environment() {
    let mut value = Value::Null;
    let variables = (0..12).map(|i| (format!("{PREFIX}LIST__{i}"), i.to_string()));
    let (origins, problems) = source::overlay(&mut value, variables, &Value::Null);
    assert_eq!((origins.len(), problems.len()), (12, 0));
    assert_eq!(value["list"], serde_json::json!((0..12).collect::<Vec<_>>()));
}

#[test]
fn all_errors_come_at_once_each_with_its_path() {
    let room = Room::new();
    room.secret("open", "correct horse battery", 0o644);
    let loaded = room.load(
        "http: {listn: 1, listen: 0.0.0.0:80, workers: -1, shutdown_seconds: soon, allow_plaintext: 'yes'}\n\
         osb: {missing_version_status: 404, min_version: 2.13, deleted_last_operation: never, dashboard_url_template: 'https://{id}'}\n\
         store: {url: mysql://x, password: hunter2}\n\
         catalog: {dirs: [nowhere, 5]}\n\
         provisioner: {kind: docker, local: {ports: 10-20, run_as: root}}\n\
         secrets: {keys: [{label: A, file: key}, {label: b, key: x}], primary: c}\n\
         platforms: [{name: CF, credentials: []}, {name: k8s, credentials: [{username: 'a:b', password_file: open}]}, text]\n\
         engine: {lease_seconds: 1}\n\
         log: {level: loud=9}\n\
         extra: {}\n",
        &[("CHANDLER__HTTP__", "1"), ("CHANDLER__ENGINE__WORKERS", "many"), ("CHANDLER__PLATFORMS__9__NAME", "x")],
    );
    let found = paths(&loaded);
    for path in [
        "http.listn",
        "http.workers",
        "http.shutdown_seconds",
        "http.allow_plaintext",
        "http.listen",
        "http.",
        "osb.missing_version_status",
        "osb.min_version",
        "osb.deleted_last_operation",
        "osb.dashboard_url_template",
        "store.url",
        "store.password",
        "catalog.dirs.0",
        "catalog.dirs.1",
        "provisioner.kind",
        "provisioner.local.ports",
        "provisioner.local.dir",
        "provisioner.local.run_as",
        "secrets.keys.0.label",
        "secrets.keys.1.key",
        "secrets.keys.1.file",
        "secrets.primary",
        "platforms.0.name",
        "platforms.0.credentials",
        "platforms.1.credentials.0.username",
        "platforms.1.credentials.0.password_file",
        "platforms.2",
        "platforms.9.name",
        "engine.lease_seconds",
        "engine.workers",
        "log.level",
        "extra",
    ] {
        assert_eq!(
            found.iter().filter(|found| **found == path).count(),
            1,
            "{path}\n{}",
            loaded.check_report()
        );
    }
    assert_eq!(found.len(), 32, "{}", loaded.check_report());
    let report = loaded.check_report();
    assert!(!report.contains("hunter2"), "{report}");
    for sentence in [
        "http.listn: unknown setting; did you mean `listen`?",
        "osb.missing_version_status: must be one of: 412, 400",
        "osb.min_version: must be text, not a number; write it in quotes",
        "store.password: secrets are not written into the configuration",
        "name that file in `password_file`",
        "(set by CHANDLER__ENGINE__WORKERS)",
        "chmod 600",
        "extra: unknown setting; known here: bindings, catalog, engine,",
    ] {
        assert!(report.contains(sentence), "{sentence}\n{report}");
    }
    assert!(loaded.clone().into_config().is_err());
    assert!(!loaded.show().contains("hunter2"));
}

/// Changes of a correct configuration that are each refused at one path.
#[test]
fn insecure_and_senseless_settings_are_refused() {
    let room = Room::new();
    room.secret("world", "correct horse battery", 0o604);
    room.secret("writable", "correct horse battery", 0o620);
    room.secret("weak", "hunter2", 0o600);
    room.secret("empty", "\n", 0o600);
    let one = "PLATFORMS__0__CREDENTIALS__0";
    for (variable, value, path) in [
        ("HTTP__LISTEN", "0.0.0.0:8080", "http.listen"),
        ("HTTP__LISTEN", "[::]:8080", "http.listen"),
        ("HTTP__ADMIN_LISTEN", "127.0.0.1:8080", "http.admin_listen"),
        (
            "HTTP__TLS",
            "{cert_file: password, key_file: key}",
            "http.tls.cert_file http.tls.key_file",
        ),
        ("OSB__MIN_VERSION", "3.0", "osb.min_version"),
        ("OSB__MIN_VERSION", "2.18", "osb.min_version"),
        (
            "OSB__DASHBOARD_URL_TEMPLATE",
            "https://x/{iid}",
            "osb.dashboard_url_template",
        ),
        ("STORE__URL", "postgres://u:hunter2@localhost/d", "store.url"),
        ("STORE__URL", "postgres://u@db.example/d", "store.url"),
        ("STORE__URL", "sqlite://relative.db", "store.url"),
        ("STORE__PASSWORD_FILE", "password", "store.password_file"),
        ("STORE__PASSWORD", "hunter2", "store.password"),
        ("PROVISIONER__LOCAL__RUN_AS", "root", "provisioner.local.run_as"),
        (
            "PROVISIONER__LOCAL__RUN_AS",
            "no-such-user",
            "provisioner.local.run_as",
        ),
        ("PROVISIONER__LOCAL__PORTS", "80-90", "provisioner.local.ports"),
        (
            "PROVISIONER__LOCAL__PORTS",
            "3000-2000",
            "provisioner.local.ports",
        ),
        ("SECRETS__KEYS", "[]", "secrets.keys"),
        ("SECRETS__PRIMARY", "two", "secrets.primary"),
        ("SECRETS__KEYS__1", "{label: two, file: key}", "secrets.primary"),
        (
            "SECRETS__KEYS__1",
            "{label: one, file: key}",
            "secrets.keys.1.label secrets.primary",
        ),
        ("PLATFORMS", "[]", "platforms"),
        (
            "PLATFORMS__1",
            "{name: cf, credentials: [{username: x, password_file: password}]}",
            "platforms.1.name",
        ),
        (
            "PLATFORMS__0__CREDENTIALS__1",
            "{username: cf, password_file: password}",
            "platforms.0.credentials.1.username",
        ),
        (
            "PLATFORMS__1",
            "{name: k8s, credentials: [{username: cf, password_file: password}]}",
            "platforms.1.credentials.0.username",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "world",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "writable",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "weak",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "empty",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "absent",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_FILE"),
            "data",
            "platforms.0.credentials.0.password_file",
        ),
        (
            &format!("{one}__PASSWORD_HASH"),
            HASH,
            "platforms.0.credentials.0",
        ),
        (
            &format!("{one}__PASSWORD"),
            "hunter2",
            "platforms.0.credentials.0.password",
        ),
        ("LOG__LEVEL", "chandler=shout", "log.level"),
    ] {
        let loaded = room.load(&least(""), &[(&format!("{PREFIX}{variable}"), value)]);
        assert_eq!(
            paths(&loaded).join(" "),
            path,
            "{variable}={value}\n{}",
            loaded.check_report()
        );
        assert!(
            !loaded.check_report().contains("hunter2") && !loaded.show().contains("hunter2"),
            "{variable}"
        );
    }
}

#[test]
fn a_vault_needs_names_that_can_stand_in_a_path() {
    let room = Room::new();
    let with = |vault: &str| {
        let more = format!(
            "vault: {{address: \"https://vault:8200\", {vault}}}\n\
             keycloak: {{url: \"https://kc\", client_secret_file: password}}\n"
        );
        room.load(&least(&more), &[])
    };
    assert_eq!(
        paths(&with("login: {mount: team/kubernetes}")),
        Vec::<&str>::new()
    );
    for (vault, path) in [
        ("login: {mount: ../sys}", "vault.login.mount"),
        ("login: {role: a/b}", "vault.login.role"),
        ("jwt_role: \"../x\"", "vault.jwt_role"),
        ("internal_mount: osb", "vault.internal_mount"),
        ("min_vault: newest", "vault.min_vault"),
        ("public_address: \"http://vault\"", "vault.public_address"),
        ("login: {wrapped: true}", "vault.login.wrapped"),
    ] {
        assert_eq!(paths(&with(vault)), [path], "{vault}");
    }
}

#[test]
fn what_is_meant_is_allowed_and_warned_about() {
    let room = Room::new();
    room.secret("group", "correct horse battery", 0o640);
    for (variable, value, warning) in [
        ("HTTP__ALLOW_PLAINTEXT", "true", "http.allow_plaintext"),
        (
            "PLATFORMS__0__CREDENTIALS__0__PASSWORD_FILE",
            "group",
            "platforms.0.credentials.0.password_file",
        ),
    ] {
        let loaded = room.load(
            &least(""),
            &[
                (&format!("{PREFIX}{variable}"), value),
                (
                    "CHANDLER__HTTP__LISTEN",
                    if variable.contains("PLAIN") {
                        "0.0.0.0:80"
                    } else {
                        "127.0.0.1:80"
                    },
                ),
            ],
        );
        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.warnings.len(), 1);
        assert_eq!(loaded.warnings[0].path, warning);
        assert!(loaded.check_report().contains("can be used; warnings: 1"));
    }
    for url in [
        "postgres://u@db.example/d?sslmode=verify-full",
        "postgres://u@localhost/d",
    ] {
        assert_eq!(
            room.load(&least(""), &[("CHANDLER__STORE__URL", url)]).problems,
            [],
            "{url}"
        );
    }
    let allowed = [
        ("CHANDLER__STORE__URL", "postgres://u@db.example/d"),
        ("CHANDLER__STORE__ALLOW_PLAINTEXT", "true"),
    ];
    assert_eq!(room.load(&least(""), &allowed).problems, []);
}

#[test]
fn hashes_are_never_shown() {
    let room = Room::new();
    let text = least("").replace("password_file: password", &format!("password_hash: '{HASH}'"));
    let loaded = room.load(&text, &[]);
    assert_eq!(loaded.problems, []);
    let shown = format!("{} {:?}", loaded.show(), loaded.config);
    assert!(shown.contains("<set>") && !shown.contains("argon2id"), "{shown}");
    let Proof::Hash(hash) = loaded.config.platforms[0].credentials[0].proof().unwrap() else {
        panic!("a hash is given");
    };
    assert_eq!(hash.expose(), HASH);
}

#[test]
fn broken_files_are_told_by_line_and_not_quoted() {
    let room = Room::new();
    for (file, text, says) in [
        ("a.yaml", "store:\n  password: hunter2\n bad: [", "line "),
        ("a.yaml", "store: {url: a}\nstore: {url: hunter2}\n", "line 2"),
        ("a.toml", "[store]\npassword = hunter2\n", "line 2"),
        ("a.json", "{\"store\": {\"password\": \"hunter2\",}}", "line 1"),
        ("a.ini", "x", "must end in .yaml"),
        ("a.yaml", "- hunter2", "must hold sections"),
    ] {
        let loaded = room.load_as(file, text, &[]);
        assert_eq!(loaded.problems.len(), 1, "{file}");
        let message = loaded.problems[0].to_string();
        assert!(
            message.contains(says) && !message.contains("hunter2"),
            "{message}"
        );
    }
    let absent = load(Some(&room.path("absent.yaml")), []);
    assert!(
        absent.check_report().contains("--config FILE"),
        "{}",
        absent.check_report()
    );
}

#[test]
fn the_store_password_comes_from_its_file_at_the_last_moment() {
    use secrecy::ExposeSecret;
    let room = Room::new();
    room.secret("db", "p@ss/w:rd\n", 0o600);
    for (url, connects) in [
        (
            "postgres://u@localhost:5432/d",
            "postgres://u:p%40ss%2Fw%3Ard@localhost:5432/d",
        ),
        (
            "postgres:///d?host=/run&user=u",
            "postgres:///d?host=/run&user=u&password=p%40ss%2Fw%3Ard",
        ),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ] {
        let store = Store {
            url: url.to_owned(),
            password_file: Some(room.path("db")),
            ..Store::default()
        };
        assert_eq!(store.connection_url().unwrap().expose_secret(), connects);
    }
}

#[test]
fn dev_needs_no_file_and_stays_on_loopback() {
    let room = Room::new();
    let data_dir = room.path("dev");
    let (password, new) = dev_password(&data_dir, None).unwrap();
    assert!(new && password.expose().len() == 40);
    let mode = fs::metadata(data_dir.join("dev-password"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left");
    let (again, new) = dev_password(&data_dir, None).unwrap();
    assert!(!new && again.expose() == password.expose());
    let (given, new) = dev_password(&data_dir, Some("mine".to_owned())).unwrap();
    assert!(!new && given.expose() == "mine");

    let dev = Dev {
        data_dir: data_dir.clone(),
        port: 0,
        catalog_dirs: vec![room.path("data")],
        password,
        run_as: None,
    };
    let config = Config::dev(&dev).unwrap();
    assert!(config.http.listen.ip().is_loopback());
    assert_eq!(
        config.store.url,
        format!("sqlite://{}/chandler.db", data_dir.display())
    );
    // The same checks as for a file hold for it.
    room.secret("dev/seal.key", "c2VjcmV0", 0o600);
    assert_eq!(check::check(&config).problems, []);
    assert!(!format!("{config:?}").contains(again.expose()));
}

#[test]
fn generated_documents_are_fresh() {
    for (file, made) in [
        ("config.schema.json", config_schema_json()),
        ("configuration.md", config_reference()),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == made,
            "docs/{file} is not what the code makes; run `make gen` and commit it"
        );
    }
}

#[test]
fn every_setting_is_documented() {
    fn walk(path: &str, schema: &Value) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(property.get("description").is_some(), "{path}");
            assert!(
                property.get("type").and_then(Value::as_str).is_some() || property.get("enum").is_some(),
                "{path}: {property}"
            );
            walk(&path, property);
            if let Some(items) = property.get("items") {
                walk(&path, items);
            }
        }
    }
    let schema = schema::schema();
    assert!(schema.get("properties").is_some());
    walk("", &schema);
}
