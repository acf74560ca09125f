//! The broker as a process.

use super::home::{Home, signal};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

/// Longest that starting may take on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(60);

/// The program as it was when the tests began: held open, because another build may replace the file meanwhile.
pub fn program() -> PathBuf {
    static HELD: OnceLock<File> = OnceLock::new();
    let held = HELD.get_or_init(|| File::open(env!("CARGO_BIN_EXE_chandler")).unwrap());
    format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd()).into()
}

/// The repository: its `catalog/` and `plans/` are what the tests provision.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What an operator's command on this home says, and whether it succeeded.
pub fn operator(home: &Home, words: &[&str]) -> (bool, String) {
    let data = home.data();
    let mut all = words.to_vec();
    all.extend(["--data-dir", data.to_str().unwrap()]);
    let output = tokio::task::block_in_place(|| run(&all));
    (output.status.success(), text(&output))
}

/// Runs a command of the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    let mut child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        err.read_to_end(&mut text).unwrap();
        text
    });
    let watched = child.id() as i32;
    let done = Arc::new(Mutex::new(false));
    let flag = done.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(90));
        if !*flag.lock().unwrap() {
            signal(watched, Signal::SIGKILL);
        }
    });
    let mut stdout = Vec::new();
    out.read_to_end(&mut stdout).unwrap();
    let status = child.wait().unwrap();
    *done.lock().unwrap() = true;
    Output {
        status,
        stdout,
        stderr: reader.join().unwrap(),
    }
}

/// The program with these arguments and none of our settings in its environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("CHANDLER") {
            command.env_remove(name);
        }
    }
    command
}

/// Text a command wrote, for assertions.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Where a broker listens; changes when it is started again.
pub type Address = Arc<RwLock<String>>;

/// A broker that runs, or did.
pub struct Broker {
    child: Child,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    cwd: PathBuf,
    /// `http://127.0.0.1:port`, empty for one that listens nowhere.
    pub address: Address,
    /// What it wrote to standard output.
    pub said: Arc<Mutex<String>>,
}

impl Broker {
    /// `chandler dev` on the home's data directory.
    pub fn dev(home: &Home) -> Self {
        Self::dev_with(home, &["--log", "info"])
    }

    /// The same with more arguments.
    pub fn dev_with(home: &Home, more: &[&str]) -> Self {
        let data = home.data();
        let mut arguments = vec![
            "dev",
            "--port",
            "0",
            "--json",
            "--data-dir",
            data.to_str().unwrap(),
        ];
        let offers = home.offers();
        arguments.extend(["--catalog-dir", offers.to_str().unwrap()]);
        arguments.extend(more);
        Self::start(home, &arguments, &[])
    }

    /// `chandler serve` on a configuration file.
    pub fn serve(home: &Home, config: &Path, role: &str) -> Self {
        Self::start(
            home,
            &["serve", "--config", config.to_str().unwrap(), "--role", role],
            &[],
        )
    }

    /// Starts the program and waits until it is ready.
    pub fn start(home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let environment: Vec<_> = environment
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let address = Address::default();
        let said = Arc::default();
        let log = home.new_log();
        let child = launch(&arguments, &environment, &log, home.path(), &address, &said);
        Self {
            child,
            arguments,
            environment,
            log,
            cwd: home.path().to_owned(),
            address,
            said,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// SIGKILL, and gone.
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again as before; it must be down.
    pub fn again(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "the broker still runs");
        self.child = launch(
            &self.arguments,
            &self.environment,
            &self.log,
            &self.cwd,
            &self.address,
            &self.said,
        );
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), Signal::SIGTERM);
        self.ended(Duration::from_secs(60))
    }

    /// Waits for the process to end.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the broker does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        signal(self.pid(), Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        signal(self.pid(), Signal::SIGCONT);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the last line of what `chandler dev` welcomes people with ends.
const WELCOME_ENDS: &str = "Ctrl-C stops the broker.";

fn launch(
    arguments: &[String],
    environment: &[(String, String)],
    log: &Path,
    cwd: &Path,
    address: &Address,
    said: &Arc<Mutex<String>>,
) -> Child {
    let logged = std::fs::metadata(log).map_or(0, |m| m.len());
    let stderr = File::options().create(true).append(true).open(log).unwrap();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command(&arguments)
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .current_dir(cwd)
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let (told, dev) = (Arc::new(Mutex::new(None)), arguments[0] == "dev");
    let (heard, kept) = (told.clone(), said.clone());
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        let mut found = None;
        for line in out.lines().map_while(Result::ok) {
            if let Some((_, url)) = line.split_once(" is ready on ") {
                found = Some(url.trim().to_owned());
            }
            kept.lock().unwrap().push_str(&format!("{line}\n"));
            // Only then the whole welcome was read.
            if line.ends_with(WELCOME_ENDS) {
                *heard.lock().unwrap() = found.take();
            }
        }
    });
    let end = Instant::now() + START;
    let url = loop {
        if dev && let Some(url) = told.lock().unwrap().take() {
            break url;
        }
        if !dev && let Some(url) = announced(log, logged) {
            break url;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!(
                "the broker ended at once, {status}: {}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
        }
        assert!(Instant::now() < end, "the broker does not become ready");
        std::thread::sleep(Duration::from_millis(5));
    };
    *address.write().unwrap() = url;
    child
}

/// The address in the line that a `chandler serve` logs once it is ready, from byte `from` on.
fn announced(log: &Path, from: u64) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text[usize::try_from(from).unwrap()..]).into_owned();
    let line = text
        .lines()
        .find(|l| l.contains("chandler is ready") && l.ends_with('}'))?;
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = line["address"].as_str().unwrap_or_default();
    Some(if address.is_empty() {
        String::new()
    } else {
        format!("http://{address}")
    })
}
