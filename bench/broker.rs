//! Processes under measurement: a broker with a directory of its own, and the handler it is compared with.

use crate::client::{self, Answer};
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Password of the platform that asks; the brokers listen on loopback and end with the benchmark.
const PASSWORD: &str = "benchmark-password";

/// Longest wait for a process to serve, or to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// Children that run, so that an interrupted benchmark can end them too.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks every child to end. For an interrupt only: who measures drops its [`Process`].
pub fn end_all() {
    for id in running().iter() {
        terminate(*id);
    }
}

fn terminate(id: u32) {
    if let Ok(pid) = i32::try_from(id) {
        // It may have ended by itself; it is a child not yet waited for, so its id is not another's.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
}

/// A child process that ends with this value.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Process {
    /// Takes charge of a child; `address` = where it listens, if it does.
    pub fn new(child: Child, address: SocketAddr) -> Self {
        running().insert(child.id());
        Self { child, address }
    }

    /// CPU time used so far, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        cpu(self.child.id())
    }

    /// Resident memory in MB (10^6 bytes).
    pub fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory it ever had, in MB.
    pub fn peak(&self) -> Result<f64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, word: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status
            .lines()
            .find_map(|line| {
                line.strip_prefix(word)?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .with_context(|| word.to_owned())?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// Its exit status, once it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Ends it as a crash would.
    pub fn crash(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, as an operator would, and waits until it did.
    fn stop(&mut self) {
        // Once waited for, its id may be another's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        terminate(self.child.id());
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        running().remove(&self.child.id());
        self.stop();
    }
}

/// CPU time a process has used so far, in seconds.
pub fn cpu(id: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let after_name = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let ticks = |field: usize| {
        after_name
            .split_whitespace()
            .nth(field)
            .and_then(|t| t.parse::<f64>().ok())
    };
    // utime and stime; Linux counts them in hundredths of a second.
    Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
}

/// A free port on loopback. Somebody may take it before it is used; then the start fails and says so.
pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// The program under measurement: built by cargo for this benchmark.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_chandler"))
}

/// The catalog that is served: the repository's.
pub fn catalog_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `Authorization` of a user with the benchmark's password.
fn authorization(user: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{PASSWORD}"));
    format!("Basic {pair}")
}

/// How a broker is started.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// `--role`.
    pub role: &'static str,
    /// `store.sqlite_group_commit`.
    pub group_commit: bool,
}

/// A running `chandler serve`.
pub struct Broker {
    /// Its process.
    pub process: Process,
    /// `Authorization` of its platform.
    pub authorization: String,
    /// Time from its start to the first 200 of `/readyz`.
    pub ready_after: Duration,
}

impl Broker {
    /// Starts `chandler serve` on the directory `dir`, with default settings but for `setup`, and waits until it is ready.
    pub fn serve(dir: &Path, setup: Setup) -> Result<Self> {
        let address = free_port()?;
        let config = dir.join("chandler.yaml");
        let (password, key) = secrets(dir)?;
        fs::write(
            &config,
            format!(
                "http: {{listen: '{address}'}}\n\
                 store: {{url: 'sqlite://{}', sqlite_group_commit: {}}}\n\
                 catalog: {{dirs: ['{}']}}\n\
                 provisioner: {{kind: local, local: {{dir: '{}'}}}}\n\
                 secrets: {{keys: [{{label: bench, file: '{}'}}]}}\n\
                 platforms: [{{name: bench, credentials: [{{username: bench, password_file: '{}'}}]}}]\n",
                database(dir).display(),
                setup.group_commit,
                catalog_dir().display(),
                dir.join("instances").display(),
                key.display(),
                password.display(),
            ),
        )?;
        let mut command = program();
        command
            .args(["serve", "--role", setup.role, "--config"])
            .arg(&config);
        Self::start(command, dir, address, "bench")
    }

    /// Starts `chandler dev` on the directory `dir` and waits until it is ready.
    pub fn dev(dir: &Path) -> Result<Self> {
        let address = free_port()?;
        let mut command = program();
        command
            .args(["dev", "--port", &address.port().to_string(), "--data-dir"])
            .arg(dir)
            .arg("--catalog-dir")
            .arg(catalog_dir())
            .env("CHANDLER_DEV_PASSWORD", PASSWORD);
        Self::start(command, dir, address, "dev")
    }

    /// Starts a command that serves on `address`, its log beside `dir`, and waits until it is ready for `user`.
    pub fn start(mut command: Command, dir: &Path, address: SocketAddr, user: &str) -> Result<Self> {
        let log = dir.with_extension("log");
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("chandler cannot be started")?;
        let mut broker = Self {
            process: Process::new(child, address),
            authorization: authorization(user),
            ready_after: Duration::ZERO,
        };
        let probe = client::request("GET", "/readyz", &broker.authorization, "");
        while !client::once(address, &probe).is_ok_and(|answer| answer.status == 200) {
            if started.elapsed() > PATIENCE || !matches!(broker.process.child.try_wait(), Ok(None)) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                bail!("chandler did not get ready; it said:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        broker.ready_after = started.elapsed();
        // The first log-in costs a password check; what follows is remembered.
        let first = broker.call("GET", "/v2/catalog", "")?;
        if first.status != 200 {
            bail!("GET /v2/catalog answered {}", first.status);
        }
        Ok(broker)
    }

    /// One call of the API.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let text = client::request(method, path, &self.authorization, body);
        client::once(self.process.address, &text).with_context(|| format!("{method} {path}"))
    }
}

/// The database of a broker's directory.
pub fn database(dir: &Path) -> PathBuf {
    dir.join("chandler.db")
}

/// The files of the platform's password and of the key that seals, in a broker's directory; made once.
pub fn secrets(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (password, key) = (dir.join("password"), dir.join("seal.key"));
    if !key.exists() {
        secret_file(&password, PASSWORD)?;
        let made = program()
            .args(["secrets", "new-key"])
            .arg(&key)
            .stdout(Stdio::null())
            .status()?;
        if !made.success() {
            bail!("chandler secrets new-key failed");
        }
    }
    Ok((password, key))
}

/// Writes a file that only its owner reads.
pub fn secret_file(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Word that makes this program serve a file instead of measuring.
pub const SERVE_BYTES: &str = "--serve-bytes";

/// Starts the comparison: a process whose one actix handler answers everything with `bytes`.
pub fn minimal_handler(dir: &Path, bytes: &[u8]) -> Result<Process> {
    let address = free_port()?;
    let file = dir.join(format!("bytes-{}", address.port()));
    fs::write(&file, bytes)?;
    let child = Command::new(std::env::current_exe()?)
        .arg(SERVE_BYTES)
        .arg(&file)
        .arg(address.to_string())
        .stdin(Stdio::null())
        .spawn()?;
    let process = Process::new(child, address);
    let started = Instant::now();
    while client::once(address, &client::request("GET", "/", "-", "")).is_err() {
        if started.elapsed() > PATIENCE {
            bail!("the minimal handler did not start");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

/// The minimal handler itself: the framework's defaults, the bytes, their type.
pub async fn serve_bytes(file: &str, address: &str) -> Result<()> {
    let bytes = actix_web::web::Bytes::from(fs::read(file)?);
    actix_web::HttpServer::new(move || {
        let bytes = bytes.clone();
        actix_web::App::new().default_service(actix_web::web::to(move || {
            let bytes = bytes.clone();
            async move {
                actix_web::HttpResponse::Ok()
                    .content_type("application/json")
                    .body(bytes)
            }
        }))
    })
    .bind(address)?
    .run()
    .await?;
    Ok(())
}

/// Stops every server of a data directory whose broker has ended.
pub fn stop_instances(data: &Path) {
    let stopped = program()
        .args(["dev", "stop", "--data-dir"])
        .arg(data)
        .stdout(Stdio::null())
        .status();
    if !stopped.is_ok_and(|status| status.success()) {
        eprintln!(
            "warning: servers below {} may still run; `chandler dev stop --data-dir {0}` stops them",
            data.display()
        );
    }
}
