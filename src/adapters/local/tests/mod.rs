//! The provisioner against real servers: redis-server, nats-server and Postgres through initdb.
//! What goes wrong on purpose is in [`faults`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;

use super::procfs;
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
        Self {
            tmp,
            range: first..=first + 39,
        }
    }

    fn root(&self) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join("instances")
    }

    /// A broker on this ground; a second one is the first after a restart.
    fn broker(&self) -> LocalProvisioner {
        let settings = LocalSettings {
            port_range: self.range.clone(),
            ..LocalSettings::new(self.root())
        };
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
        Memory {
            dir: self.root().join(".state"),
        }
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
    InstanceRef {
        iid: names::iid("test", &n.to_string()),
        offering: offering.into(),
        plan: "small".into(),
        ..InstanceRef::default()
    }
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
            binaries: binaries
                .iter()
                .map(|(n, c)| ((*n).into(), vec![(*c).into()]))
                .collect(),
            install: format!("apt-get install {name}"),
            ports: ports.iter().map(|p| (*p).into()).collect(),
            spec: Template::compile(json!({})).unwrap(),
        }),
        objects: Vec::new(),
        resources: Vec::new(),
        binding: None,
    }
}

fn plan(runs_on: &[&str]) -> Plan {
    use crate::domain::catalog::{Schema, Schemas};
    let schema = || Schema {
        json: json!({}),
        validator: Arc::new(jsonschema::validator_for(&json!({})).unwrap()),
    };
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
        retain_days: 0,
        delivery: Vec::new(),
        schemas: Schemas {
            create: schema(),
            update: schema(),
            bind: schema(),
        },
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
    FileSpec {
        path: path.into(),
        content,
        ..FileSpec::default()
    }
}

fn desired(spec: ProcessSpec) -> Desired {
    Desired {
        process: Some(spec),
        ..Desired::default()
    }
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

/// Sends inline commands after logging in; returns the answers to them, once the server has loaded its data.
fn ask(port: u16, commands: &str) -> String {
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        write!(stream, "AUTH Secret123Secret\r\n{commands}\r\nQUIT\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if !answer.contains("-LOADING") {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("still loading");
}

/// Whether the key `a` still has the value the test gave it.
#[track_caller]
fn assert_kept(port: u16) {
    let answer = ask(port, "GET a");
    assert!(answer.contains("kept"), "{answer:?}");
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
        if broker.remove(i, Volumes::Delete).await.unwrap() == Removal::Gone {
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
    assert!(matches!(
        broker.observe(&i, &first).await.unwrap(),
        Observation::Absent(_)
    ));
    let Observation::Ready(endpoints) = until_settled(&broker, &i, &first).await else {
        panic!()
    };
    assert_eq!(
        (
            endpoints[0].name.as_str(),
            endpoints[0].host.as_str(),
            endpoints[0].port
        ),
        ("client", "127.0.0.1", client)
    );
    assert!(ask(client, "SET a kept").contains("+OK\r\n+OK"));

    // Nothing of ours reaches it: user, groups, descriptors, environment, terminal's group.
    let pid = ground.leader(&i);
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("redis").unwrap().unwrap();
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        assert_eq!(
            status(pid, "Uid:").split('\t').collect::<BTreeSet<_>>(),
            BTreeSet::from([uid.as_str()])
        );
        assert_eq!(
            status(pid, "Gid:").split('\t').collect::<BTreeSet<_>>(),
            BTreeSet::from([gid.as_str()])
        );
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
    let Observation::Absent(why) = broker.observe(&i, &first).await.unwrap() else {
        panic!()
    };
    assert!(why.contains("SIGKILL"), "{why}");
    assert!(matches!(
        until_settled(&broker, &i, &first).await,
        Observation::Ready(_)
    ));
    assert_kept(client);

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
    assert!(matches!(
        broker.observe(&i, &first).await.unwrap(),
        Observation::Ready(_)
    ));
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
    assert!(matches!(
        until_settled(&broker, &i, &second).await,
        Observation::Ready(_)
    ));
    assert_ne!(ground.leader(&i), pid);
    let answer = ask(client, "CONFIG GET maxclients\r\nGET a\r\nACL LIST");
    assert!(
        answer.contains("77") && answer.contains("kept") && answer.contains("guest"),
        "{answer}"
    );

    // Stopped as a whole: data stays and it starts again.
    assert_eq!(broker.stop_all().await.unwrap(), 1);
    assert!(ground.family(&i).is_empty());
    assert!(matches!(
        broker.observe(&i, &second).await.unwrap(),
        Observation::Absent(_)
    ));
    assert!(matches!(
        until_settled(&broker, &i, &second).await,
        Observation::Ready(_)
    ));
    assert_kept(client);

    until_gone(&broker, &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(broker.remove(&i, Volumes::Delete).await.unwrap(), Removal::Gone);
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(
        broker.apply(&i, &first).await.unwrap_err().kind,
        PortErrorKind::Gone
    );
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
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
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
        &[
            ("initdb", "/usr/lib/postgresql/*/bin/initdb"),
            ("server", "/usr/lib/postgresql/*/bin/postgres"),
        ],
        &["client"],
    )
}

fn postgres(placement: &Map<String, Value>, connections: u32) -> ProcessSpec {
    let root = text(placement, "dirs", "root");
    ProcessSpec {
        files: vec![
            FileSpec {
                init_only: true,
                ..file("pw", "Pg123Secret".into())
            },
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
        command: vec![
            text(placement, "bin", "server"),
            "-D".into(),
            format!("{root}/data"),
        ],
        stop: StopSpec {
            signal: "SIGINT".into(),
            grace: 10,
        },
        ready: ReadySpec { tcp: "client".into() },
        ..ProcessSpec::default()
    }
}

/// Runs SQL as admin, trying again while the server boots.
fn sql(port: u16, statement: &str) -> String {
    let mut said = String::new();
    for _ in 0..50 {
        let out = Command::new("psql")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-U",
                "admin",
                "-d",
                "postgres",
                "-tAc",
                statement,
            ])
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
    let dir = files::Dir::open(
        &ground.home(&i),
        &ground.memory().facts(&i.iid).unwrap().unwrap().account,
    )
    .unwrap();
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

    let Observation::Absent(_) = broker.observe(&i, &want).await.unwrap() else {
        panic!()
    };
    // Reaped by its own parent, here the test.
    let reaper = std::thread::spawn(move || left.wait().unwrap());
    broker.apply(&i, &want).await.unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
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
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
    assert_eq!(sql(client, "select a from t"), "42");

    let more = desired(postgres(&placement, 33));
    broker.apply(&i, &more).await.unwrap();
    assert!(matches!(
        until_settled(&broker, &i, &more).await,
        Observation::Ready(_)
    ));
    assert_eq!(sql(client, "show max_connections"), "33");
    assert_eq!(sql(client, "select a from t"), "42");

    // Removed by a broker that restarts half-way.
    let _ = broker.remove(&i, Volumes::Delete).await.unwrap();
    until_gone(&ground.broker(), &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn nats_reloads_without_a_restart() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "nats");
    let nats = offering(
        "nats",
        "nats",
        &[("server", "nats-server")],
        &["client", "monitor"],
    );
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
            command: vec![
                text(&placement, "bin", "server"),
                "-c".into(),
                format!("{root}/conf/nats.conf"),
            ],
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
    let Observation::Ready(endpoints) = until_settled(&broker, &i, &open).await else {
        panic!()
    };
    assert_eq!(
        endpoints.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
        ["client", "monitor"]
    );
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
async fn offers_only_what_can_run() {
    let ground = Ground::new();
    let broker = ground.broker();
    let redis = redis_offering();
    broker.offers(&redis, &plan(&["kubernetes", "local"])).unwrap();
    assert!(broker.offers(&redis, &plan(&["kubernetes"])).is_err());
    let missing = offering("minio", "nobody", &[("server", "no-such-minio")], &["api"]);
    let why = broker.offers(&missing, &plan(&["local"])).unwrap_err();
    assert!(
        why.contains("server") && why.contains("apt-get install minio"),
        "{why}"
    );
    assert_eq!(
        broker
            .place(&instance(1, "minio"), &missing)
            .await
            .unwrap_err()
            .kind,
        PortErrorKind::Denied
    );
    let objects_only = Offering {
        process: None,
        ..redis.clone()
    };
    assert!(broker.offers(&objects_only, &plan(&["local"])).is_err());

    let rows = broker.doctor(&[Arc::new(redis), Arc::new(missing), Arc::new(objects_only)]);
    assert!(rows[0].available && rows[0].advice.is_empty());
    assert!(
        rows[0].binaries[0].version.as_ref().unwrap().contains("Redis"),
        "{rows:?}"
    );
    assert!(!rows[1].available && rows[1].advice.contains("apt-get"));
    assert!(!rows[2].available);

    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(ground.tmp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let why = broker.offers(&redis_offering(), &plan(&["local"])).unwrap_err();
        assert!(why.contains("chmod o+x"), "{why}");
        let error = broker
            .place(&instance(2, "redis"), &redis_offering())
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Denied);
    }
}
