//! Throwaway servers on loopback: one directory, one process each, gone when the guard drops.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chandler::domain::instance::Endpoint;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

/// A child process that does not outlive this guard.
pub struct Process {
    child: Child,
    stop: Signal,
}

impl Process {
    /// Starts `command` with its output thrown away; `stop` is the signal that makes it end at once.
    pub fn start(command: &mut Command, stop: Signal) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server's program is installed");
        Self { child, stop }
    }

    /// The same with everything it says in a file.
    #[allow(dead_code, reason = "each test target uses a part")]
    pub fn start_logging(command: &mut Command, stop: Signal, log: &Path) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the server's program is installed");
        Self { child, stop }
    }

    /// Its number.
    #[allow(dead_code, reason = "each test target uses a part")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended by itself.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Sends any signal, to pause or wake it.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).expect("our own child can be signalled");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended() {
            return;
        }
        self.signal(Signal::SIGCONT);
        self.signal(self.stop);
        for _ in 0..100 {
            if self.ended() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts a server on a free port, again on another one when it ends before it listens (somebody took the port).
pub fn start_listening(start: impl Fn(u16) -> Process) -> (Process, u16) {
    start_listening_within(Duration::from_secs(10), start)
}

/// The same for a server that may take `limit` until it listens.
pub fn start_listening_within(limit: Duration, start: impl Fn(u16) -> Process) -> (Process, u16) {
    for _ in 0..5 {
        let port = free_port();
        let mut process = start(port);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !process.ended() {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return (process, port);
            }
            sleep(Duration::from_millis(20));
        }
    }
    panic!("the server does not come up");
}

/// An endpoint on loopback.
pub fn endpoint(name: &str, port: u16) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        host: Ipv4Addr::LOCALHOST.to_string(),
        port,
    }
}

/// A PostgreSQL server whose superuser is `chandler`.
pub struct Postgres {
    /// Where it listens.
    pub port: u16,
    /// The superuser's password.
    pub password: String,
    /// The running server. Before `dir`, so that it is gone when its directory goes.
    pub process: Process,
    dir: TempDir,
}

fn postgres_program(name: &str) -> PathBuf {
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_else(|| PathBuf::from(name))
}

/// PostgreSQL refuses to run as root, so root hands it to the account the package made for it.
fn as_postgres(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(postgres_program(program));
    command.current_dir(dir).env_clear();
    if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().expect("account postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

impl Postgres {
    /// Starts one with few lock slots and prepared transactions on, so that hostile clients find what they need.
    pub fn start(password: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("chandler-pg-").tempdir().unwrap();
        let data = dir.path().join("data");
        let password_file = dir.path().join("password");
        fs::write(&password_file, password).unwrap();
        if geteuid().is_root() {
            let user = User::from_name("postgres").unwrap().expect("account postgres");
            for path in [dir.path(), &password_file] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        let initdb = as_postgres("initdb", dir.path())
            .args([
                "-U",
                "chandler",
                "--auth=scram-sha-256",
                "--no-sync",
                "--no-instructions",
            ])
            .args(["--encoding=UTF8", "--locale=C", "--pwfile"])
            .arg(&password_file)
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            initdb.status.success(),
            "{}",
            String::from_utf8_lossy(&initdb.stderr)
        );
        let (process, port) = start_listening(|port| {
            let mut command = as_postgres("postgres", dir.path());
            command.arg("-D").arg(&data).arg("-k").arg(dir.path());
            for setting in [
                "listen_addresses=127.0.0.1".to_owned(),
                format!("port={port}"),
                "fsync=off".to_owned(),
                "max_connections=40".to_owned(),
                "max_locks_per_transaction=10".to_owned(),
                "max_prepared_transactions=10".to_owned(),
                "logging_collector=on".to_owned(),
                "log_directory=log".to_owned(),
                "log_statement=all".to_owned(),
            ] {
                command.arg("-c").arg(setting);
            }
            Process::start(&mut command, Signal::SIGQUIT)
        });
        // It listens before it lets anybody in; the last line of this file says when it does.
        for _ in 0..500 {
            let status = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            if status.trim_end().ends_with("ready") {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        Self {
            port,
            password: password.to_owned(),
            process,
            dir,
        }
    }

    /// All the server has logged, every statement included.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.dir.path().join("data/log")).unwrap();
        files
            .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
            .collect()
    }
}

/// A Redis server with an ACL file, the default user off and one administrator `chandler`.
pub struct Redis {
    /// Where it listens.
    pub port: u16,
    /// The running server.
    pub process: Process,
    dir: TempDir,
}

impl Redis {
    /// Starts one; `admin_sha256` is the administrator's hashed password.
    pub fn start(admin_sha256: &str) -> Self {
        Self::start_with(
            &[(
                "users.acl",
                &format!("user default off\n{}", administrator(admin_sha256)),
            )],
            &["--aclfile", "users.acl"],
        )
    }

    /// One that keeps its users in memory only.
    pub fn without_acl_file(admin_sha256: &str) -> Self {
        Self::start_with(&[("redis.conf", &administrator(admin_sha256))], &[])
    }

    fn start_with(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-redis-")
            .tempdir()
            .unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let (process, port) = start_listening(|port| {
            let mut command = Command::new("redis-server");
            command.current_dir(dir.path());
            if dir.path().join("redis.conf").exists() {
                command.arg("redis.conf");
            }
            command
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
                .args(["--appendfsync", "no", "--busy-reply-threshold", "200"])
                .args(["--port", &port.to_string()])
                .args(arguments);
            Process::start(&mut command, Signal::SIGKILL)
        });
        Self { port, process, dir }
    }

    /// Takes away the place the ACL file is saved to.
    pub fn break_saving(&self) {
        let file = self.dir.path().join("users.acl");
        fs::remove_file(&file).unwrap();
        fs::create_dir_all(file.join("in the way")).unwrap();
    }

    /// What a restarted server would load.
    pub fn saved_users(&self) -> String {
        fs::read_to_string(self.dir.path().join("users.acl")).unwrap()
    }
}

fn administrator(sha256: &str) -> String {
    format!("user chandler on #{sha256} ~* &* +@all\n")
}
