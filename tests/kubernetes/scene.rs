//! One test's broker on the cluster, with everything it needs and everything it must not leave.
//!
//! A [`Stage`] is what can be set up before the broker starts; a [`Scene`] is a broker that runs. Both names of the
//! cluster's things and ids of instances hold the scene's tag, so that tests beside each other never meet.

use crate::cluster::{Kubectl, replacements};
use crate::pods::Tools;
use crate::support::home::Home;
use crate::support::platform::{Answer, End, Platform, binding, instance};
use crate::support::process::{self, Broker};
use crate::support::served::Served;
use chandler::domain::names;
use chandler::ports::SecretStore;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::RwLock;

/// Longest that one operation may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// What every object of the broker carries.
pub const OURS: &str = "app.kubernetes.io/managed-by=chandler";
/// Everything the broker may make of, as `kubectl get` takes it.
const KINDS: &str = "all,pvc,secret,networkpolicy,configmap,serviceaccount,resourcequota,limitrange,pdb";

static TURN: RwLock<()> = RwLock::const_new(());

/// Whose turn it is on the cluster.
struct Turn(#[expect(dead_code, reason = "held")] Box<dyn Send + Sync>);

/// What a broker is going to be started on.
pub struct Stage {
    pub kubectl: Kubectl,
    pub tag: String,
    pub served: Served,
    cleanup: Cleanup,
    /// Held until all is cleaned up.
    _turn: Turn,
    /// Last, so that it outlives what works in it.
    pub home: Home,
}

impl Stage {
    /// For a test that others may run beside.
    pub async fn new() -> Self {
        let turn = Turn(Box::new(TURN.read().await));
        Self::with(turn, None).await
    }

    /// For a test that needs the cluster for itself.
    pub async fn alone() -> Self {
        let turn = Turn(Box::new(TURN.write().await));
        Self::with(turn, None).await
    }

    /// Over another database than a file of its own.
    pub async fn on(url: &str) -> Self {
        let turn = Turn(Box::new(TURN.read().await));
        Self::with(turn, Some(url)).await
    }

    async fn with(turn: Turn, url: Option<&str>) -> Self {
        let kubectl = Kubectl::admin();
        let tag = format!("kt-{}", chandler::app::random_token()[..8].to_ascii_lowercase());
        let home = Home::new();
        let mut served = match url {
            Some(url) => Served::new(&home, url),
            None => Served::sqlite(&home),
        };
        let cleanup = Cleanup::new(&kubectl, &tag);
        let account = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {tag}}}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: chandler, namespace: {tag}}}\n"
        );
        kubectl.apply(&account).await;
        let mut stage = Self {
            kubectl,
            tag,
            _turn: turn,
            cleanup,
            served: Served {
                file: PathBuf::new(),
                settings: Value::Null,
            },
            home,
        };
        let kubeconfig = stage.kubeconfig("broker.kubeconfig", None).await;
        served.settings["catalog"] = json!({"reload_seconds": 0});
        served.settings["http"]["workers"] = json!(2);
        served.settings["log"] = json!({"level": "info,chandler=debug"});
        served.settings["provisioner"] = json!({"kind": "kubernetes", "kubernetes": {
            "kubeconfig": kubeconfig,
            "broker_namespace": stage.tag,
            "images": {"replace": replacements()},
        }});
        stage.served = served;
        stage
    }

    /// The section of the settings about the cluster.
    pub fn kubernetes(&mut self) -> &mut Value {
        &mut self.served.settings["provisioner"]["kubernetes"]
    }

    /// A kubeconfig of the broker's service account, with the API server at another address if given.
    pub async fn kubeconfig(&self, name: &str, server: Option<&str>) -> PathBuf {
        let view = ["config", "view", "--raw", "--minify", "--flatten", "-o", "json"];
        let view: Value = serde_json::from_str(&self.kubectl.ok(&view).await).unwrap();
        let mut cluster = view["clusters"][0]["cluster"].clone();
        if let Some(server) = server {
            cluster["server"] = server.into();
        }
        let token = ["create", "token", "chandler", "-n", &self.tag, "--duration=3h"];
        let token = self.kubectl.ok(&token).await;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "chandler", "user": {"token": token.trim()}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "chandler"}}],
            "current-context": "here",
        });
        self.home.private(name, &config.to_string())
    }

    /// Puts all instances into one namespace, which is made with these labels beside those it must have.
    pub async fn shared(&mut self, name: &str, labels: Value) {
        let mut all = json!({"app.kubernetes.io/managed-by": "chandler",
            "pod-security.kubernetes.io/enforce": "restricted"});
        all.as_object_mut()
            .unwrap()
            .extend(labels.as_object().unwrap().clone());
        self.cleanup.namespace(name);
        let space =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": all}});
        self.kubectl.apply_object(&space).await;
        self.kubernetes()["tenancy"] = "shared".into();
        self.kubernetes()["namespace"] = name.into();
    }

    /// A namespace with nothing but the strictest Pod Security.
    pub async fn strict(&self, word: &str) -> String {
        let name = format!("{}-{word}", self.tag);
        self.cleanup.namespace(&name);
        let strict: serde_json::Map<String, Value> = ["enforce", "warn"]
            .map(|mode| (format!("pod-security.kubernetes.io/{mode}"), "restricted".into()))
            .into_iter()
            .collect();
        let space =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": strict}});
        self.kubectl.apply_object(&space).await;
        name
    }

    /// Definitions of kinds that carry this stage's tag go with it.
    pub fn crds(&mut self) {
        self.cleanup.crds = true;
    }

    /// Lays a file over the built-in catalog, such as `plans/redis/small.yaml`.
    pub fn file(&mut self, path: &str, text: &str) {
        let folder = self.home.path().join("own");
        let file = folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        for must_be_there in ["catalog", "plans"] {
            std::fs::create_dir_all(folder.join(must_be_there)).unwrap();
        }
        self.served.settings["catalog"]["dirs"] = json!([folder]);
    }

    /// A built-in plan with other top-level members and values.
    pub fn plan(&mut self, service: &str, plan: &str, change: impl FnOnce(&mut Value)) {
        self.changed(&format!("plans/{service}/{plan}.yaml"), change);
    }

    /// The same for `offering.yaml`.
    pub fn offering(&mut self, service: &str, change: impl FnOnce(&mut Value)) {
        self.changed(&format!("catalog/{service}/offering.yaml"), change);
    }

    fn changed(&mut self, path: &str, change: impl FnOnce(&mut Value)) {
        let text = std::fs::read_to_string(process::repository().join(path)).unwrap();
        let mut value: Value = serde_saphyr::from_str(&text).unwrap();
        change(&mut value);
        self.file(path, &serde_json::to_string_pretty(&value).unwrap());
    }

    /// Gives the service account the rights that `chandler rbac` prints for these settings, and no others.
    pub async fn grant(&self) {
        self.served.write();
        let output = process::run(&["rbac", "--config", self.served.file()]);
        assert!(output.status.success(), "{}", process::text(&output));
        let printed = String::from_utf8(output.stdout).unwrap();
        // The account that the role is bound to by itself is `chandler` in the broker's namespace.
        self.kubectl.apply(&printed).await;
    }

    /// Starts the broker.
    pub async fn open(self) -> Scene {
        self.grant().await;
        let broker = self.broker();
        let osb = Osb::new(Served::platform(&broker)).await;
        Scene {
            osb,
            broker,
            ids: Mutex::default(),
            stage: self,
        }
    }

    /// One more broker on the settings as they are now.
    pub fn broker(&self) -> Broker {
        self.served.write();
        // Nothing of the administrator's may reach it.
        Broker::start(
            &self.home,
            &["serve", "--config", self.served.file()],
            &[("KUBECONFIG", "/dev/null")],
        )
    }
}

/// A broker that runs, as a platform sees it.
pub struct Scene {
    pub broker: Broker,
    pub osb: Osb,
    ids: Mutex<BTreeSet<String>>,
    pub stage: Stage,
}

impl Scene {
    /// On settings as they come.
    pub async fn new() -> Self {
        Stage::new().await.open().await
    }

    pub fn kubectl(&self) -> &Kubectl {
        &self.stage.kubectl
    }

    /// A platform's id for an instance of this scene; what is made of it must be gone at the end.
    pub fn id(&self, word: &str) -> String {
        let id = format!("{}-{word}", self.stage.tag);
        self.ids.lock().unwrap().insert(id.clone());
        self.stage.cleanup.instance(&iid(&id));
        id
    }

    /// A pod of an application in a namespace that every plan admits.
    pub async fn application(&self) -> Tools {
        self.tools("in", json!({"chandler.osb/consumer": "true"})).await
    }

    /// A pod in a namespace of its own.
    pub async fn tools(&self, word: &str, labels: Value) -> Tools {
        let namespace = format!("{}-{word}", self.stage.tag);
        self.stage.cleanup.namespace(&namespace);
        Tools::start(self.kubectl(), &namespace, labels).await
    }

    /// Name of an admission policy that goes with the scene.
    pub fn policy_name(&self, word: &str) -> String {
        let name = format!("{}-{word}", self.stage.tag);
        self.stage.cleanup.policies.lock().unwrap().insert(name.clone());
        name
    }

    /// Ends a command of the program on this broker's settings.
    pub fn command(&self, arguments: &[&str]) -> String {
        let config = ["--config", self.stage.served.file()];
        let output = process::run(&[arguments, &config].concat());
        let text = process::text(&output);
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    }

    /// What is left in the cluster of all instances of this scene.
    pub async fn left(&self) -> Vec<String> {
        let iids: Vec<String> = self.ids.lock().unwrap().iter().map(|id| iid(id)).collect();
        let selector = format!("{OURS},chandler.osb/instance in ({})", iids.join(","));
        let kubectl = self.kubectl();
        let mut left = kubectl.names(&[KINDS, "-A", "-l", &selector]).await;
        for iid in &iids {
            let space = space(iid);
            left.extend(kubectl.names(&["namespace", &space]).await);
        }
        let volumes = kubectl.get(&["persistentvolumes"]).await;
        for volume in volumes["items"].as_array().unwrap() {
            let claimed = volume["spec"]["claimRef"]["namespace"]
                .as_str()
                .unwrap_or_default();
            if iids.iter().any(|iid| space(iid) == claimed) {
                left.push(format!("persistentvolume/{}", volume["metadata"]["name"]));
            }
        }
        left
    }

    /// Nothing is left of any instance: objects, volumes, secrets of the broker's own.
    pub async fn nothing_left(&self) {
        let end = Instant::now() + Duration::from_secs(240);
        let state = self.stage.served.state().await;
        state.idle().await;
        loop {
            let mut left = self.left().await;
            let secrets = state.sealed.list("").await.unwrap();
            left.extend(
                secrets
                    .iter()
                    .map(|name| format!("secret of the broker's: {name}")),
            );
            if left.is_empty() {
                break;
            }
            // Volumes go after their claims, and kept ones with the sweep's second look.
            assert!(Instant::now() < end, "left: {left:#?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        state.store.close().await;
    }

    /// Ends well: nothing is left, and the broker stops when told to.
    pub async fn end(mut self) {
        self.nothing_left().await;
        assert!(self.broker.stop().success());
    }
}

/// The broker's name for an instance of the platform `cf`.
pub fn iid(id: &str) -> String {
    names::iid("cf", id)
}

/// The namespace of an instance.
pub fn space(iid: &str) -> String {
    format!("osb-{iid}")
}

/// How an operation went.
#[derive(Debug)]
pub struct Told {
    pub end: End,
    /// Each text that `last_operation` had, once, in order.
    pub texts: Vec<String>,
    pub took: Duration,
}

impl Told {
    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.end, End::Succeeded, "{:#?}", self.texts);
        self
    }

    /// The sentence of a failure.
    #[track_caller]
    pub fn failed(&self) -> &str {
        match &self.end {
            End::Failed(why) => why,
            End::Succeeded => panic!("it succeeded: {:#?}", self.texts),
        }
    }
}

/// A plan by the names people use.
pub type Plan = (&'static str, &'static str);

/// A platform that knows the catalog it was given.
#[derive(Clone)]
pub struct Osb {
    pub platform: Platform,
    pub catalog: Value,
}

impl Osb {
    pub async fn new(platform: Platform) -> Self {
        let catalog = platform.get("/v2/catalog").await.expect(&[200]).body;
        Self { platform, catalog }
    }

    /// Whether the catalog has the plan.
    pub fn offers(&self, plan: Plan) -> bool {
        self.find(plan).is_some()
    }

    fn find(&self, (service, plan): Plan) -> Option<(String, String)> {
        let services = self.catalog["services"].as_array()?;
        let service = services.iter().find(|s| s["name"] == service)?;
        let plan = service["plans"].as_array()?.iter().find(|p| p["name"] == plan)?;
        let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
        Some((id(service), id(plan)))
    }

    /// Ids of service and plan.
    #[track_caller]
    pub fn ids(&self, plan: Plan) -> (String, String) {
        self.find(plan)
            .unwrap_or_else(|| panic!("{plan:?} is not offered: {:#}", self.catalog))
    }

    fn query(&self, plan: Plan) -> String {
        let (service, plan) = self.ids(plan);
        format!("service_id={service}&plan_id={plan}&accepts_incomplete=true")
    }

    /// Polls to the end and keeps what was told.
    pub async fn follow(&self, answer: &Answer, path: &str) -> Told {
        let begin = Instant::now();
        let mut texts: Vec<String> = Vec::new();
        if answer.status != 202 {
            let answer = answer.clone().expect(&[200, 201, 410]);
            return Told {
                end: End::Succeeded,
                texts: vec![answer.text],
                took: begin.elapsed(),
            };
        }
        let operation = answer.operation().unwrap();
        let path = format!("{path}/last_operation?operation={operation}");
        loop {
            let now = self.platform.get(&path).await;
            let text = now.body["description"].as_str().unwrap_or_default();
            if texts.last().is_none_or(|last| last != text) {
                texts.push(text.to_owned());
            }
            let end = match (now.status, now.body["state"].as_str()) {
                (410, _) | (200, Some("succeeded")) => Some(End::Succeeded),
                (200, Some("failed")) => Some(End::Failed(text.to_owned())),
                (200, _) => None,
                _ => panic!("{path}: {} {}", now.status, now.text),
            };
            let took = begin.elapsed();
            if let Some(end) = end {
                return Told { end, texts, took };
            }
            assert!(took < PATIENCE, "{path}: not done in {PATIENCE:?}: {texts:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks for an instance; the answer may be anything.
    pub async fn ask(&self, plan: Plan, id: &str, parameters: Value) -> Answer {
        let (service, plan) = self.ids(plan);
        let body = json!({"service_id": service, "plan_id": plan, "organization_guid": "org", "space_guid": "space",
            "parameters": parameters});
        let path = format!("{}?accepts_incomplete=true", instance(id));
        self.platform.sure("PUT", &path, Some(&body)).await
    }

    pub async fn create(&self, plan: Plan, id: &str, parameters: Value) -> Told {
        let answer = self.ask(plan, id, parameters).await.expect(&[200, 201, 202]);
        self.follow(&answer, &instance(id)).await
    }

    /// Asks for other parameters, or another plan.
    pub async fn ask_update(&self, plan: Plan, id: &str, change: Value) -> Answer {
        let mut body = json!({"service_id": self.ids(plan).0});
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let path = format!("{}?accepts_incomplete=true", instance(id));
        self.platform.sure("PATCH", &path, Some(&body)).await
    }

    pub async fn update(&self, plan: Plan, id: &str, change: Value) -> Told {
        let answer = self.ask_update(plan, id, change).await.expect(&[200, 202]);
        self.follow(&answer, &instance(id)).await
    }

    /// Binds, and gives the credentials.
    pub async fn bind(&self, plan: Plan, id: &str, binding_id: &str, parameters: Value) -> Value {
        let (service, plan) = self.ids(plan);
        let body = json!({"service_id": service, "plan_id": plan, "parameters": parameters});
        let path = format!("{}?accepts_incomplete=true", binding(id, binding_id));
        let answer = self.platform.sure("PUT", &path, Some(&body)).await;
        let answer = answer.expect(&[200, 201, 202]);
        self.follow(&answer, &binding(id, binding_id)).await.good();
        self.platform.credentials(id, binding_id).await
    }

    pub async fn unbind(&self, plan: Plan, id: &str, binding_id: &str) {
        let path = format!("{}?{}", binding(id, binding_id), self.query(plan));
        let answer = self
            .platform
            .sure("DELETE", &path, None)
            .await
            .expect(&[200, 202, 410]);
        self.follow(&answer, &binding(id, binding_id)).await.good();
    }

    pub async fn ask_delete(&self, plan: Plan, id: &str) -> Answer {
        let path = format!("{}?{}", instance(id), self.query(plan));
        self.platform.sure("DELETE", &path, None).await
    }

    pub async fn delete(&self, plan: Plan, id: &str) -> Told {
        let answer = self.ask_delete(plan, id).await.expect(&[200, 202, 410]);
        self.follow(&answer, &instance(id)).await.good()
    }
}

/// Removes what a test made in the cluster, however it ended.
struct Cleanup {
    kubectl: Kubectl,
    namespaces: Mutex<BTreeSet<String>>,
    instances: Mutex<BTreeSet<String>>,
    policies: Mutex<BTreeSet<String>>,
    tag: String,
    crds: bool,
}

impl Cleanup {
    fn new(kubectl: &Kubectl, tag: &str) -> Self {
        Self {
            kubectl: kubectl.clone(),
            namespaces: Mutex::new(BTreeSet::from([tag.to_owned()])),
            instances: Mutex::default(),
            policies: Mutex::new(BTreeSet::from([format!("chandler.{tag}.chandler")])),
            tag: tag.to_owned(),
            crds: false,
        }
    }

    fn namespace(&self, name: &str) {
        self.namespaces.lock().unwrap().insert(name.to_owned());
    }

    fn instance(&self, iid: &str) {
        self.instances.lock().unwrap().insert(space(iid));
    }

    /// kubectl to its end, from a destructor.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.kubectl.now(arguments);
        output.map_or_else(
            |e| e.to_string(),
            |o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned(),
        )
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let instances = std::mem::take(&mut *self.instances.lock().unwrap());
        if std::thread::panicking() {
            for space in &instances {
                eprintln!("--- {space} ---");
                eprintln!("{}", self.run(&["get", "all,pvc", "-o", "wide", "-n", space]));
                eprintln!("{}", self.run(&["get", "events", "-n", space]));
                let logs = [
                    "logs",
                    "-n",
                    space,
                    "-l",
                    OURS,
                    "--all-containers",
                    "--prefix",
                    "--tail=15",
                ];
                eprintln!("{}", self.run(&logs));
            }
        }
        let spaces: Vec<String> = std::mem::take(&mut *self.namespaces.lock().unwrap())
            .into_iter()
            .chain(instances)
            .collect();
        let mut delete = vec!["delete", "namespace", "--ignore-not-found", "--wait=false"];
        delete.extend(spaces.iter().map(String::as_str));
        self.run(&delete);
        let policies = std::mem::take(&mut *self.policies.lock().unwrap());
        let kinds =
            "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding";
        let mut delete = vec!["delete", kinds, "--ignore-not-found", "--wait=false"];
        delete.extend(policies.iter().map(String::as_str));
        self.run(&delete);
        if self.crds {
            let made = format!("chandler.osb/test={}", self.tag);
            self.run(&[
                "delete",
                "crd",
                "-l",
                &made,
                "--ignore-not-found",
                "--timeout=60s",
            ]);
        }
    }
}
