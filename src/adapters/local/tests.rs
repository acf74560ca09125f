//! The provisioner against real servers: redis-server, nats-server and Postgres through initdb.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::procfs::{self, Leader};
use super::state::{Memory, Phase};
use super::*;
use crate::domain::expr::Template;
use crate::domain::manifest::{ChangeAction, FileSpec, InitSpec, ProcessSpec, ReadySpec, StopSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use tempfile::TempDir;

/// A directory of instances whose processes end with the test, however it ends.
struct Ground {
    tmp: TempDir,
    range: RangeInclusive<u16>,
}

impl Ground {
    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(21_000);
        let first = NEXT.fetch_add(40, Ordering::SeqCst);
        let tmp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Self { tmp, range: first..=first + 39 }
    }

    fn root(&self) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join("instances")
    }

    /// A broker on this ground; a second one is the first after a restart.
    fn broker(&self) -> LocalProvisioner {
        let settings = LocalSettings { port_range: self.range.clone(), ..LocalSettings::new(self.root()) };
        LocalProvisioner::new(settings).unwrap()
    }

    fn home(&self, i: &InstanceRef) -> PathBuf {
        self.root().join(&i.iid)
    }

    fn family(&self, i: &InstanceRef) -> Vec<procfs::Process> {
        procfs::family(&[&self.home(i)]).unwrap()
    }

    fn leader(&self, i: &InstanceRef) -> i32 {
        procfs::roots(&self.family(i))[0].pid
    }

    fn memory(&self) -> Memory {
        Memory { dir: self.root().join(".state") }
    }

    /// Names under the root, without our own directories, and reserved ports.
    fn left(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in ["", ".state", ".ports"] {
            for entry in std::fs::read_dir(self.root().join(dir)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if ![".state", ".ports", ".lock"].contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        names
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let root = self.tmp.path().canonicalize().unwrap();
        for _ in 0..100 {
            let left = procfs::family(&[&root]).unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for process in left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn instance(n: usize, offering: &str) -> InstanceRef {
    InstanceRef { iid: names::iid("test", &n.to_string()), offering: offering.into(), plan: "small".into() }
}

fn offering(name: &str, user: &str, binaries: &[(&str, &str)], ports: &[&str]) -> Offering {
    Offering {
        id: name.into(),
        name: name.into(),
        description: String::new(),
        bindable: true,
        tags: Vec::new(),
        requires: Vec::new(),
        metadata: Map::new(),
        concurrency: 1,
        generated: std::collections::BTreeMap::new(),
        plans: Vec::new(),
        process: Some(ProcessTemplate {
            user: vec![user.into()],
            binaries: binaries.iter().map(|(n, c)| ((*n).into(), vec![(*c).into()])).collect(),
            install: format!("apt-get install {name}"),
            ports: ports.iter().map(|p| (*p).into()).collect(),
            spec: Template::compile(json!({})).unwrap(),
        }),
        objects: Vec::new(),
        binding: None,
    }
}

fn plan(runs_on: &[&str]) -> Plan {
    use crate::domain::catalog::{Schema, Schemas};
    let schema = || Schema { json: json!({}), validator: Arc::new(jsonschema::validator_for(&json!({})).unwrap()) };
    Plan {
        id: "p".into(),
        name: "small".into(),
        description: String::new(),
        free: true,
        bindable: true,
        plan_updateable: false,
        binding_rotatable: true,
        maximum_polling_duration: 60,
        maintenance_version: None,
        maintenance_description: None,
        metadata: Map::new(),
        values: Map::new(),
        runs_on: runs_on.iter().map(|s| (*s).into()).collect(),
        updates_to: Vec::new(),
        binding_lifetime: None,
        schemas: Schemas { create: schema(), update: schema(), bind: schema() },
    }
}

fn redis_offering() -> Offering {
    offering("redis", "redis", &[("server", "redis-server")], &["client"])
}

fn text(placement: &Map<String, Value>, group: &str, name: &str) -> String {
    placement[group][name].as_str().unwrap().to_owned()
}

fn port(placement: &Map<String, Value>, name: &str) -> u16 {
    u16::try_from(placement["ports"][name].as_u64().unwrap()).unwrap()
}

fn file(path: &str, content: String) -> FileSpec {
    FileSpec { path: path.into(), content, ..FileSpec::default() }
}

fn desired(spec: ProcessSpec) -> Desired {
    Desired { process: Some(spec), ..Desired::default() }
}

fn redis(placement: &Map<String, Value>, extra: &str) -> ProcessSpec {
    let root = text(placement, "dirs", "root");
    ProcessSpec {
        files: vec![
            file(
                "redis.conf",
                format!(
                    "bind 127.0.0.1\nport {}\ndir {root}\nappendonly yes\naclfile {root}/users.acl\n{extra}\n",
                    port(placement, "client")
                ),
            ),
            FileSpec {
                path: "users.acl".into(),
                content: "user default on >Secret123Secret ~* &* +@all\n".into(),
                keep: true,
                ..FileSpec::default()
            },
        ],
        command: vec![text(placement, "bin", "server"), format!("{root}/redis.conf")],
        ready: ReadySpec { tcp: "client".into() },
        ..ProcessSpec::default()
    }
}

/// Sends inline commands after logging in; returns the answers to them.
fn ask(port: u16, commands: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    write!(stream, "AUTH Secret123Secret\r\n{commands}\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What the engine does: look; apply when nothing is there; come back.
async fn until_settled(broker: &LocalProvisioner, i: &InstanceRef, desired: &Desired) -> Observation {
    for _ in 0..400 {
        match broker.observe(i, desired).await.unwrap() {
            Observation::Absent(_) => broker.apply(i, desired).await.unwrap(),
            Observation::Progressing(_) => {}
            settled => return settled,
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("neither ready nor failed: {:?}", broker.observe(i, desired).await);
}

async fn until_gone(broker: &LocalProvisioner, i: &InstanceRef) {
    for _ in 0..400 {
        if broker.remove(i).await.unwrap() == Removal::Gone {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not removed");
}

async fn until_dead(ground: &Ground, i: &InstanceRef) {
    for _ in 0..200 {
        if ground.family(i).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still alive");
}

fn status(pid: i32, field: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test]
async fn redis_lives_dies_returns_changes_and_goes() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    assert_eq!(broker.place(&i, &redis_offering()).await.unwrap(), placement);
    assert_eq!(placement["host"], "127.0.0.1");
    let client = port(&placement, "client");
    let first = desired(redis(&placement, ""));
    assert!(matches!(broker.observe(&i, &first).await.unwrap(), Observation::Absent(_)));
    let Observation::Ready(endpoints) = until_settled(&broker, &i, &first).await else { panic!() };
    assert_eq!((endpoints[0].name.as_str(), endpoints[0].host.as_str(), endpoints[0].port), ("client", "127.0.0.1", client));
    assert!(ask(client, "SET a kept").contains("+OK\r\n+OK"));

    // Nothing of ours reaches it: user, groups, descriptors, environment, terminal's group.
    let pid = ground.leader(&i);
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("redis").unwrap().unwrap();
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        assert_eq!(status(pid, "Uid:").split('\t').collect::<BTreeSet<_>>(), BTreeSet::from([uid.as_str()]));
        assert_eq!(status(pid, "Gid:").split('\t').collect::<BTreeSet<_>>(), BTreeSet::from([gid.as_str()]));
        assert_eq!(status(pid, "Groups:"), "");
    }
    let group = nix::unistd::getpgid(Some(Pid::from_raw(pid))).unwrap();
    assert_eq!(group.as_raw(), pid);

    // Applying again what runs already changes nothing.
    broker.apply(&i, &first).await.unwrap();
    assert_eq!(ground.leader(&i), pid);

    // Killed from outside: absent, then back with its data.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until_dead(&ground, &i).await;
    let Observation::Absent(why) = broker.observe(&i, &first).await.unwrap() else { panic!() };
    assert!(why.contains("SIGKILL"), "{why}");
    assert!(matches!(until_settled(&broker, &i, &first).await, Observation::Ready(_)));
    assert!(ask(client, "GET a").contains("kept"));

    // The broker restarts: the same process is found, also when its pid was never written down.
    let pid = ground.leader(&i);
    drop(broker);
    let mut run = ground.memory().run(&i.iid);
    assert!(matches!(run.phase, Phase::Running(_)));
    run.phase = Phase::Starting;
    ground.memory().keep_run(&i.iid, &run).unwrap();
    let broker = ground.broker();
    broker.apply(&i, &first).await.unwrap();
    assert_eq!(ground.leader(&i), pid);
    assert!(matches!(broker.observe(&i, &first).await.unwrap(), Observation::Ready(_)));
    assert_eq!(broker.list().await.unwrap(), [i.iid.as_str()]);

    // A change restarts it with the new file and keeps the data; the file it owns is left alone.
    let second = desired(redis(&placement, "maxclients 77"));
    std::fs::OpenOptions::new()
        .append(true)
        .open(ground.home(&i).join("users.acl"))
        .unwrap()
        .write_all(b"user guest on nopass ~g* +@read\n")
        .unwrap();
    broker.apply(&i, &second).await.unwrap();
    assert!(matches!(until_settled(&broker, &i, &second).await, Observation::Ready(_)));
    assert_ne!(ground.leader(&i), pid);
    let answer = ask(client, "CONFIG GET maxclients\r\nGET a\r\nACL LIST");
    assert!(answer.contains("77") && answer.contains("kept") && answer.contains("guest"), "{answer}");

    // Stopped as a whole: data stays and it starts again.
    assert_eq!(broker.stop_all().await.unwrap(), 1);
    assert!(ground.family(&i).is_empty());
    assert!(matches!(broker.observe(&i, &second).await.unwrap(), Observation::Absent(_)));
    assert!(matches!(until_settled(&broker, &i, &second).await, Observation::Ready(_)));
    assert!(ask(client, "GET a").contains("kept"));

    until_gone(&broker, &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(broker.remove(&i).await.unwrap(), Removal::Gone);
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(broker.apply(&i, &first).await.unwrap_err().kind, PortErrorKind::Gone);
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_of_the_broker_is_inherited() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let _listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let secret = ground.tmp.path().join("broker.db");
    let _open = std::fs::File::create(&secret).unwrap();
    let ours: BTreeSet<PathBuf> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .filter(|l| l != Path::new("/dev/null"))
        .filter(|l| !l.to_string_lossy().starts_with("anon_inode:"))
        .collect();
    assert!(ours.contains(&secret));
    let want = desired(redis(&placement, ""));
    assert!(matches!(until_settled(&broker, &i, &want).await, Observation::Ready(_)));
    let pid = ground.leader(&i);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let link = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert!(!ours.contains(&link), "inherited {}", link.display());
    }
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    for name in ["CARGO", "HOME="] {
        assert!(!String::from_utf8_lossy(&environment).contains(name));
    }
    let log = std::fs::metadata(ground.home(&i).join("log/process.log")).unwrap();
    assert_eq!(log.mode() & 0o777, 0o600);
    assert!(log.len() > 0);
    // What is remembered holds no secret.
    for entry in std::fs::read_dir(ground.root().join(".state")).unwrap() {
        let content = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!content.contains("Secret123"));
    }
    until_gone(&broker, &i).await;
}

fn postgres_offering() -> Offering {
    offering(
        "postgres",
        "postgres",
        &[("initdb", "/usr/lib/postgresql/*/bin/initdb"), ("server", "/usr/lib/postgresql/*/bin/postgres")],
        &["client"],
    )
}

fn postgres(placement: &Map<String, Value>, connections: u32) -> ProcessSpec {
    let root = text(placement, "dirs", "root");
    ProcessSpec {
        files: vec![
            FileSpec { init_only: true, ..file("pw", "Pg123Secret".into()) },
            file(
                "data/postgresql.conf",
                format!(
                    "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nmax_connections = {connections}\nfsync = off\n",
                    port(placement, "client")
                ),
            ),
        ],
        init: Some(InitSpec {
            creates: "data".into(),
            command: vec![
                text(placement, "bin", "initdb"),
                "-D".into(),
                text(placement, "dirs", "init"),
                "--username=admin".into(),
                "--auth=scram-sha-256".into(),
                format!("--pwfile={root}/pw"),
                "--no-sync".into(),
            ],
        }),
        command: vec![text(placement, "bin", "server"), "-D".into(), format!("{root}/data")],
        stop: StopSpec { signal: "SIGINT".into(), grace: 10 },
        ready: ReadySpec { tcp: "client".into() },
        ..ProcessSpec::default()
    }
}

/// Runs SQL as admin, trying again while the server boots.
fn sql(port: u16, statement: &str) -> String {
    let mut said = String::new();
    for _ in 0..50 {
        let out = Command::new("psql")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "admin", "-d", "postgres", "-tAc", statement])
            .env("PGPASSWORD", "Pg123Secret")
            .env("PGCONNECT_TIMEOUT", "2")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if out.status.success() {
            return String::from_utf8(out.stdout).unwrap().trim().to_owned();
        }
        said = String::from_utf8_lossy(&out.stderr).into_owned();
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{said}");
}

#[tokio::test]
async fn postgres_through_initdb() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "postgres");
    let placement = broker.place(&i, &postgres_offering()).await.unwrap();
    let client = port(&placement, "client");
    let want = desired(postgres(&placement, 20));

    // An init that a dead broker left behind, still running and half done: swept away, never taken for the server.
    let dir = files::Dir::open(&ground.home(&i), &ground.memory().facts(&i.iid).unwrap().unwrap().account).unwrap();
    dir.write(".init/half", b"done").unwrap();
    let mut left = Command::new("/bin/sleep")
        .arg("60")
        .current_dir(ground.home(&i).join(".init"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut run = ground.memory().run(&i.iid);
    run.phase = Phase::Init;
    ground.memory().keep_run(&i.iid, &run).unwrap();

    let Observation::Absent(_) = broker.observe(&i, &want).await.unwrap() else { panic!() };
    // Reaped by its own parent, here the test.
    let reaper = std::thread::spawn(move || left.wait().unwrap());
    broker.apply(&i, &want).await.unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(matches!(until_settled(&broker, &i, &want).await, Observation::Ready(_)));
    let home = ground.home(&i);
    assert!(!home.join("pw").exists() && !home.join(".init").exists() && !home.join("data/half").exists());
    sql(client, "create table t (a int)");
    sql(client, "insert into t values (42)");
    assert!(ground.family(&i).len() > 3, "the children count as family");

    // The first process dies, its children may linger: never two servers, and the data is there.
    let leader = ground.leader(&i);
    kill(Pid::from_raw(leader), Signal::SIGKILL).unwrap();
    while procfs::look(leader).is_some() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(matches!(until_settled(&broker, &i, &want).await, Observation::Ready(_)));
    assert_eq!(sql(client, "select a from t"), "42");

    let more = desired(postgres(&placement, 33));
    broker.apply(&i, &more).await.unwrap();
    assert!(matches!(until_settled(&broker, &i, &more).await, Observation::Ready(_)));
    assert_eq!(sql(client, "show max_connections"), "33");
    assert_eq!(sql(client, "select a from t"), "42");

    // Removed by a broker that restarts half-way.
    let _ = broker.remove(&i).await.unwrap();
    until_gone(&ground.broker(), &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn an_init_that_fails_leaves_nothing_and_says_why() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "postgres");
    let placement = broker.place(&i, &postgres_offering()).await.unwrap();
    let mut spec = postgres(&placement, 20);
    let init = spec.init.as_mut().unwrap();
    init.command = vec![
        "/bin/sh".into(),
        "-c".into(),
        "touch .init/x; cat pw >&2; echo 'error: no room for Pg123Secret' >&2; exit 3".into(),
    ];
    let error = broker.apply(&i, &desired(spec.clone())).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(error.message.contains("exit code 3") && error.message.contains("no room for ***"), "{error}");
    assert!(!error.message.contains("Pg123"), "{error}");
    // Killed half-way by something else: may pass by itself.
    spec.init.as_mut().unwrap().command[2] = "mkdir -p .init/deep; kill -9 $$".into();
    let error = broker.apply(&i, &desired(spec)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    for name in [".init", "data", "pw"] {
        assert!(!ground.home(&i).join(name).exists(), "{name}");
    }
    assert!(ground.family(&i).is_empty());
    let want = desired(postgres(&placement, 20));
    assert!(matches!(until_settled(&broker, &i, &want).await, Observation::Ready(_)));
    until_gone(&broker, &i).await;
}

#[tokio::test]
async fn nats_reloads_without_a_restart() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "nats");
    let nats = offering("nats", "nats", &[("server", "nats-server")], &["client", "monitor"]);
    let placement = broker.place(&i, &nats).await.unwrap();
    let spec = |extra: &str| {
        let root = text(&placement, "dirs", "root");
        desired(ProcessSpec {
            files: vec![file(
                "conf/nats.conf",
                format!(
                    "listen: 127.0.0.1:{}\nhttp: 127.0.0.1:{}\n{extra}\n",
                    port(&placement, "client"),
                    port(&placement, "monitor")
                ),
            )],
            command: vec![text(&placement, "bin", "server"), "-c".into(), format!("{root}/conf/nats.conf")],
            change: ChangeAction::Reload,
            ready: ReadySpec { tcp: "client".into() },
            ..ProcessSpec::default()
        })
    };
    let hello = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port(&placement, "client"))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    let open = spec("");
    let Observation::Ready(endpoints) = until_settled(&broker, &i, &open).await else { panic!() };
    assert_eq!(endpoints.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["client", "monitor"]);
    assert!(!hello().contains("auth_required"));
    let pid = ground.leader(&i);
    let closed = spec("authorization { token: \"abc\" }");
    broker.apply(&i, &closed).await.unwrap();
    let mut closed_now = false;
    for _ in 0..100 {
        closed_now = hello().contains("\"auth_required\":true");
        if closed_now {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(closed_now);
    assert_eq!(ground.leader(&i), pid);
    until_gone(&broker, &i).await;
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_crash_loop_fails_with_a_line_a_person_can_use() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let bad = desired(redis(&placement, "no-such-directive Topsecret99"));
    let Observation::Failed(why) = until_settled(&broker, &i, &bad).await else { panic!() };
    assert!(why.contains("3 times in a row (exit code 1)") && why.contains("no-such-directive"), "{why}");
    assert!(!why.contains("Topsecret99") && !why.contains(ground.root().to_str().unwrap()), "{why}");
    assert!(why.len() < 700 && !why.chars().any(char::is_control), "{why}");
    // Applying the same again waits out the pause; after it, there is another try.
    broker.apply(&i, &bad).await.unwrap();
    assert!(matches!(broker.observe(&i, &bad).await.unwrap(), Observation::Failed(_)));
    let mut run = ground.memory().run(&i.iid);
    assert_eq!(run.crashes, 3);
    run.exited = 0;
    ground.memory().keep_run(&i.iid, &run).unwrap();
    assert!(matches!(broker.observe(&i, &bad).await.unwrap(), Observation::Absent(_)));
    // A corrected description is tried at once.
    run.exited = procfs::uptime_ms();
    ground.memory().keep_run(&i.iid, &run).unwrap();
    let good = desired(redis(&placement, ""));
    broker.apply(&i, &good).await.unwrap();
    assert!(matches!(until_settled(&broker, &i, &good).await, Observation::Ready(_)));
    until_gone(&broker, &i).await;
}

/// A service that is a shell script run by `nobody`.
fn script(placement: &Map<String, Value>, text: &str) -> ProcessSpec {
    let _ = placement;
    ProcessSpec {
        command: vec!["/bin/sh".into(), "-c".into(), text.into()],
        stop: StopSpec { signal: "SIGTERM".into(), grace: 1 },
        ready: ReadySpec { tcp: "client".into() },
        ..ProcessSpec::default()
    }
}

fn script_offering() -> Offering {
    offering("script", "nobody", &[("sh", "/bin/sh")], &["client"])
}

#[tokio::test]
async fn what_will_not_stop_is_killed_with_its_children_after_the_grace() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let stubborn = desired(script(&placement, "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done"));
    broker.apply(&i, &stubborn).await.unwrap();
    assert!(matches!(broker.observe(&i, &stubborn).await.unwrap(), Observation::Progressing(_)));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(ground.family(&i).len() >= 2);
    let start = procfs::uptime_ms();
    assert!(matches!(broker.remove(&i).await.unwrap(), Removal::StillGoing(_)));
    assert!(procfs::uptime_ms() - start < 900, "the caller is not held for the grace");
    // While it goes, nothing is started, placed or reported as ready.
    assert_eq!(broker.apply(&i, &stubborn).await.unwrap_err().kind, PortErrorKind::Gone);
    assert_eq!(broker.place(&i, &script_offering()).await.unwrap_err().kind, PortErrorKind::Gone);
    assert!(matches!(broker.observe(&i, &stubborn).await.unwrap(), Observation::Progressing(_)));
    assert!(ground.home(&i).exists());
    until_gone(&ground.broker(), &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restart_escalates_too() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let stubborn = desired(script(&placement, "trap '' TERM; while :; do sleep 1; done"));
    broker.apply(&i, &stubborn).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let old = ground.leader(&i);
    let changed = desired(script(&placement, "while :; do sleep 2; done"));
    broker.apply(&i, &changed).await.unwrap();
    assert!(matches!(broker.observe(&i, &changed).await.unwrap(), Observation::Progressing(_)));
    let mut new = old;
    for _ in 0..100 {
        if let Observation::Absent(_) = broker.observe(&i, &changed).await.unwrap() {
            broker.apply(&i, &changed).await.unwrap();
            new = ground.leader(&i);
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_ne!(old, new);
    assert_eq!(ground.memory().run(&i.iid).crashes, 0);
    until_gone(&broker, &i).await;
}

#[tokio::test]
async fn a_dropped_apply_still_finishes_before_a_remove() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let mut spec = script(&placement, "while :; do sleep 1; done");
    spec.init = Some(InitSpec {
        creates: "data".into(),
        command: vec!["/bin/sh".into(), "-c".into(), "sleep 0.6; touch .init/made".into()],
    });
    let want = desired(spec);
    let cut = tokio::time::timeout(Duration::from_millis(200), broker.apply(&i, &want)).await;
    assert!(cut.is_err());
    // Init is still at work, without its caller: the lock is held and everything waits for it.
    assert!(matches!(broker.remove(&i).await.unwrap(), Removal::Gone | Removal::StillGoing(_)));
    until_gone(&broker, &i).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_places_and_applies() {
    let ground = Ground::new();
    let brokers = [Arc::new(ground.broker()), Arc::new(ground.broker())];
    let mut tasks = Vec::new();
    for n in 0..16 {
        let broker = Arc::clone(&brokers[n % 2]);
        tasks.push(tokio::spawn(async move {
            port(&broker.place(&instance(n, "redis"), &redis_offering()).await.unwrap(), "client")
        }));
    }
    let mut got = BTreeSet::new();
    for task in tasks {
        got.insert(task.await.unwrap());
    }
    assert_eq!(got.len(), 16);

    // Two brokers apply one instance at the same time, over and over: one server.
    let i = instance(0, "redis");
    let placement = brokers[0].place(&i, &redis_offering()).await.unwrap();
    let want = desired(redis(&placement, ""));
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (broker, i, want) = (Arc::clone(&brokers[n % 2]), i.clone(), want.clone());
            tokio::spawn(async move { broker.apply(&i, &want).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(ground.family(&i).len(), 1);
    for n in 0..16 {
        until_gone(&brokers[(n + 1) % 2], &instance(n, "redis")).await;
    }
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(brokers[0].list().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn names_and_paths_cannot_reach_outside() {
    let ground = Ground::new();
    let broker = ground.broker();
    for bad in ["", "..", "../../etc", "a/b", "A", "x\0", "aaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        let i = InstanceRef { iid: bad.into(), ..instance(1, "redis") };
        assert_eq!(broker.place(&i, &redis_offering()).await.unwrap_err().kind, PortErrorKind::Invalid);
        assert_eq!(broker.remove(&i).await.unwrap_err().kind, PortErrorKind::Invalid);
    }
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let good = redis(&placement, "");
    for bad in ["/etc/x", "../x", "a/../../x", "", "log/x", "a\0b"] {
        let mut spec = good.clone();
        spec.files[0].path = bad.into();
        assert_eq!(broker.apply(&i, &desired(spec)).await.unwrap_err().kind, PortErrorKind::Invalid, "{bad:?}");
        let mut spec = good.clone();
        spec.init = Some(InitSpec { creates: bad.into(), command: vec!["/bin/true".into()] });
        assert_eq!(broker.apply(&i, &desired(spec)).await.unwrap_err().kind, PortErrorKind::Invalid, "{bad:?}");
    }
    let mut spec = good.clone();
    spec.command[0] = "redis-server".into();
    assert_eq!(broker.apply(&i, &desired(spec)).await.unwrap_err().kind, PortErrorKind::Invalid);
    let mut spec = good.clone();
    spec.stop.signal = "SIGSTOP".into();
    assert_eq!(broker.apply(&i, &desired(spec)).await.unwrap_err().kind, PortErrorKind::Invalid);

    // Links planted where files and directories belong, and inside what is erased.
    let outside = ground.tmp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    symlink(&outside, ground.home(&i).join("conf")).unwrap();
    symlink(outside.join("victim"), ground.home(&i).join("redis.conf")).unwrap();
    symlink(&outside, ground.home(&i).join(".init")).unwrap();
    let mut spec = good.clone();
    spec.files.push(file("conf/victim", "evil".into()));
    assert_eq!(broker.apply(&i, &desired(spec)).await.unwrap_err().kind, PortErrorKind::Denied);
    assert!(matches!(until_settled(&broker, &i, &desired(good)).await, Observation::Ready(_)));
    until_gone(&broker, &i).await;
    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "untouched");

    // The root of all: not ours alone, not used.
    let open = ground.tmp.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(LocalProvisioner::new(LocalSettings::new(open)).is_err());
    assert!(LocalProvisioner::new(LocalSettings::new("relative")).is_err());
}

#[tokio::test]
async fn half_made_and_half_erased_things_are_listed_and_removed() {
    let ground = Ground::new();
    let broker = ground.broker();
    let [made, trashed, reserved, running] = [1, 2, 3, 4].map(|n| instance(n, "redis"));
    std::fs::create_dir(ground.home(&made)).unwrap();
    let trash = ground.root().join(format!(".trash-{}", trashed.iid));
    std::fs::create_dir_all(trash.join("deep/er")).unwrap();
    symlink(&reserved.iid, ground.root().join(".ports/20001")).unwrap();
    std::fs::create_dir(ground.home(&running)).unwrap();
    let child = Command::new("/bin/sleep").arg("60").current_dir(ground.home(&running)).stdin(Stdio::null()).spawn();
    let mut child = child.unwrap();
    std::fs::remove_dir(ground.home(&running)).unwrap();
    let all: BTreeSet<String> = [&made, &trashed, &reserved, &running].map(|i| i.iid.clone()).into();
    assert_eq!(broker.list().await.unwrap().into_iter().collect::<BTreeSet<_>>(), all);
    let reaper = std::thread::spawn(move || child.wait());
    for i in [&made, &trashed, &reserved, &running] {
        until_gone(&broker, i).await;
    }
    reaper.join().unwrap().unwrap();
    assert_eq!(ground.left(), Vec::<String>::new());

    std::fs::create_dir_all(trash.join("deep")).unwrap();
    drop(ground.broker());
    assert!(!trash.exists());
}

#[tokio::test]
async fn offers_only_what_can_run() {
    let ground = Ground::new();
    let broker = ground.broker();
    let redis = redis_offering();
    broker.offers(&redis, &plan(&["kubernetes", "local"])).unwrap();
    assert!(broker.offers(&redis, &plan(&["kubernetes"])).is_err());
    let missing = offering("minio", "nobody", &[("server", "no-such-minio")], &["api"]);
    let why = broker.offers(&missing, &plan(&["local"])).unwrap_err();
    assert!(why.contains("server") && why.contains("apt-get install minio"), "{why}");
    assert_eq!(broker.place(&instance(1, "minio"), &missing).await.unwrap_err().kind, PortErrorKind::Denied);
    let objects_only = Offering { process: None, ..redis.clone() };
    assert!(broker.offers(&objects_only, &plan(&["local"])).is_err());

    let rows = broker.doctor(&[Arc::new(redis), Arc::new(missing), Arc::new(objects_only)]);
    assert!(rows[0].available && rows[0].advice.is_empty());
    assert!(rows[0].binaries[0].version.as_ref().unwrap().contains("Redis"), "{rows:?}");
    assert!(!rows[1].available && rows[1].advice.contains("apt-get"));
    assert!(!rows[2].available);

    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(ground.tmp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let why = broker.offers(&redis_offering(), &plan(&["local"])).unwrap_err();
        assert!(why.contains("chmod o+x"), "{why}");
        let error = broker.place(&instance(2, "redis"), &redis_offering()).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Denied);
    }
}

#[tokio::test]
async fn a_pid_used_again_is_not_our_server() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let want = desired(redis(&placement, ""));
    let mut stranger = Command::new("/bin/sleep").arg("60").current_dir("/").stdin(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(stranger.id()).unwrap();
    let mut run = ground.memory().run(&i.iid);
    run.phase = Phase::Running(Leader { pid, start: 1 });
    ground.memory().keep_run(&i.iid, &run).unwrap();
    assert!(matches!(broker.observe(&i, &want).await.unwrap(), Observation::Absent(_)));
    assert!(matches!(until_settled(&broker, &i, &want).await, Observation::Ready(_)));
    until_gone(&broker, &i).await;
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
