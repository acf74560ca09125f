//! From a filled `process.yaml` to a running server: files, init, start.
//!
//! What must stay true: the service never runs as root and keeps none of root's groups; nothing
//! of the broker's (descriptors, environment, terminal) reaches it; it outlives the broker; an
//! init that did not finish leaves nothing that looks finished.

use super::binaries::BARE_PATH;
use super::files::Dir;
use super::host::{self, Host, plain_or_invalid};
use super::procfs::{self, Leader};
use super::state::{self, Facts, Phase, Run};
use super::users::Account;
use super::{trouble, words};
use crate::domain::manifest::{FileSpec, InitSpec, ProcessSpec, StopSpec};
use crate::ports::{PortError, PortResult};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Where init works, relative to the instance's directory; `dirs.init` in the catalog.
pub(super) const INIT: &str = ".init";
/// Where the server's output goes, relative to the instance's directory.
pub(super) const LOG: &str = "log/process.log";
/// A log longer than this is put aside when the server starts.
const LOG_LIMIT: u64 = 5 * 1024 * 1024;
/// How long init may take.
const INIT_LIMIT_MS: u64 = 90_000;

/// Refuses a spec that could reach outside its directory or that we could not stop.
pub(super) fn check(spec: &ProcessSpec) -> PortResult<()> {
    for file in &spec.files {
        plain_or_invalid(&file.path, "file")?;
    }
    check_command(&spec.command)?;
    if let Some(init) = &spec.init {
        plain_or_invalid(&init.creates, "directory")?;
        check_command(&init.command)?;
    }
    if spec
        .env
        .iter()
        .any(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
    {
        return Err(PortError::invalid(
            "The service's description has an environment variable that cannot be set.",
        ));
    }
    stop_signal(&spec.stop).map(|_| ())
}

fn check_command(command: &[String]) -> PortResult<()> {
    match command.first() {
        Some(program) if program.starts_with('/') && !command.iter().any(|a| a.contains('\0')) => Ok(()),
        _ => Err(PortError::invalid(
            "The service's description must start its commands with a full path, such as `${bin.server}`.",
        )),
    }
}

/// The signal a spec asks for.
pub(super) fn stop_signal(stop: &StopSpec) -> PortResult<Signal> {
    match stop.signal.as_str() {
        "SIGTERM" => Ok(Signal::SIGTERM),
        "SIGINT" => Ok(Signal::SIGINT),
        "SIGQUIT" => Ok(Signal::SIGQUIT),
        other => Err(PortError::invalid(format!(
            "The service's description stops it by {other:?}: use SIGTERM, SIGINT or SIGQUIT."
        ))),
    }
}

/// How a process ended, in words.
pub(super) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            format!("killed by signal {signal}, {name}")
        }
        (None, None) => "unknown end".into(),
    }
}

/// One start of one instance.
pub(super) struct Start<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The instance.
    pub iid: &'a str,
    /// What was chosen for it.
    pub facts: &'a Facts,
    /// What it should be.
    pub spec: &'a ProcessSpec,
}

impl Start<'_> {
    /// Writes the files, runs init when needed, starts the server. Nothing of the instance may run.
    pub fn go(&self, run: &mut Run) -> PortResult<()> {
        let home = self.host.home(self.iid);
        let dir = Dir::ensure(&home, &self.facts.account)
            .map_err(|e| trouble("open the instance's directory", &e))?;
        let log = dir
            .sub("log")
            .map_err(|e| trouble("open the instance's log", &e))?;
        run.stop = self.spec.stop.clone();
        run.stopping = None;
        if let Some(init) = &self.spec.init {
            self.init(init, &dir, &log, run)?;
        }
        for file in self.spec.files.iter().filter(|f| f.init_only) {
            dir.remove(&file.path)
                .map_err(|e| trouble("remove a file of the initialisation", &e))?;
        }
        write_into(&dir, self.spec, |file| !file.init_only)?;
        let output = log
            .append("process.log", LOG_LIMIT)
            .map_err(|e| trouble("open the instance's log", &e))?;

        (run.command, run.files) = state::hashes(self.spec);
        run.phase = Phase::Starting;
        run.started = procfs::uptime_ms();
        run.ready = false;
        run.ending.clear();
        run.log_from = output.metadata().map_or(0, |m| m.len());
        self.host.memory.keep_run(self.iid, run)?;
        let child = self.spawn(&self.spec.command, &home, output)?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        // Not reaped yet, so its entry is there even if it has ended already.
        let start = procfs::started(pid).unwrap_or(0);
        self.host
            .children()
            .entry(self.iid.to_owned())
            .or_default()
            .push(child);
        run.phase = Phase::Running(Leader { pid, start });
        self.host.memory.keep_run(self.iid, run)
    }

    /// Makes `init.creates` unless it is there: worked on under another name, renamed when whole.
    fn init(&self, init: &InitSpec, dir: &Dir, log: &Dir, run: &mut Run) -> PortResult<()> {
        let failed = |e| trouble("prepare the instance's data", &e);
        self.wipe_init()?;
        if dir.has_dir(&init.creates).map_err(failed)? {
            return Ok(());
        }
        run.phase = Phase::Init;
        self.host.memory.keep_run(self.iid, run)?;
        let below = format!("{}/", init.creates);
        write_into(dir, self.spec, |file| !file.path.starts_with(&below))?;
        dir.sub(INIT).map_err(failed)?;
        log.remove("init.log").map_err(failed)?;
        let output = log.append("init.log", LOG_LIMIT).map_err(failed)?;

        let home = self.host.home(self.iid);
        let mut child = self.spawn(&init.command, &home, output)?;
        let status = wait(&mut child, INIT_LIMIT_MS);
        // Whatever it left running would be taken for the service later.
        let left = self.host.family(self.iid)?;
        host::signal_all(&left, Signal::SIGKILL)?;
        if status.is_none() {
            let _ = child.kill();
            let _ = wait(&mut child, 2_000);
        }
        match status {
            Some(status) if status.success() => {
                dir.rename(INIT, &init.creates).map_err(failed)?;
                run.phase = Phase::Idle;
                Ok(())
            }
            other => {
                let said = words::last_words(&dir.tail("log/init.log", 0, 16 * 1024), self.spec, &home);
                self.wipe_init()?;
                for file in self.spec.files.iter().filter(|f| f.init_only) {
                    dir.remove(&file.path).map_err(failed)?;
                }
                run.phase = Phase::Idle;
                self.host.memory.keep_run(self.iid, run)?;
                Err(self.init_error(other, &said))
            }
        }
    }

    fn init_error(&self, status: Option<ExitStatus>, said: &str) -> PortError {
        let name = &self.facts.offering;
        match status {
            None => PortError::transient(format!(
                "Preparing the data of {name} took longer than {} seconds. {said}",
                INIT_LIMIT_MS / 1000
            )),
            Some(status) if status.signal().is_some() => PortError::transient(format!(
                "Preparing the data of {name} was interrupted ({}). {said}",
                ending(status)
            )),
            Some(status) => PortError::invalid(format!(
                "Preparing the data of {name} failed ({}). It says: {said}",
                ending(status)
            )),
        }
    }

    fn wipe_init(&self) -> PortResult<()> {
        match std::fs::remove_dir_all(self.host.home(self.iid).join(INIT)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(trouble("clear the instance's data", &e))
            }
            _ => Ok(()),
        }
    }

    /// Starts a program as the service's user in the instance's directory, on its own: no terminal signal reaches
    /// it, and it lives on when the broker dies.
    fn spawn(&self, argv: &[String], home: &Path, output: File) -> PortResult<Child> {
        let broken = |e: std::io::Error| trouble("open the instance's log", &e);
        let (program, arguments) = argv
            .split_first()
            .ok_or_else(|| PortError::invalid("The service's description has an empty command."))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(home)
            .env_clear()
            .env("PATH", BARE_PATH)
            .env("LANG", "C.UTF-8")
            .envs(&self.spec.env)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(broken)?)
            .stderr(output)
            .process_group(0);
        keep_descriptors_ours();
        drop_privileges(&mut command, &self.facts.account);
        command.spawn().map_err(|e| {
            PortError::invalid(format!("{} could not be started: {e}.", self.facts.offering))
                .with_detail(format!("{program}: {e}"))
        })
    }
}

/// Marks every descriptor but the standard three close-on-exec.
///
/// What we open ourselves is marked already; what whoever started the broker left open is not, and a server that
/// outlives us would hold a build's pipe or a supervisor's socket for ever.
pub(super) fn keep_descriptors_ours() {
    close_fds::set_fds_cloexec(3, &[]);
}

/// Standard library order: group, then `setgroups(0)` because we are root, then user, then the directory.
fn drop_privileges(command: &mut Command, account: &Account) {
    if nix::unistd::geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
}

fn wait(child: &mut Child, limit_ms: u64) -> Option<ExitStatus> {
    let end = procfs::uptime_ms() + limit_ms;
    while procfs::uptime_ms() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Writes the files a running server reloads.
pub(super) fn write_files(home: &Path, facts: &Facts, spec: &ProcessSpec) -> PortResult<()> {
    let dir = Dir::open(home, &facts.account).map_err(|e| trouble("open the instance's directory", &e))?;
    write_into(&dir, spec, |file| !file.init_only)
}

/// Writes the chosen files; those the server keeps itself only when they are absent.
fn write_into(dir: &Dir, spec: &ProcessSpec, chosen: impl Fn(&FileSpec) -> bool) -> PortResult<()> {
    let failed = |e| trouble("write a file of the instance", &e);
    for file in spec.files.iter().filter(|file| chosen(file)) {
        if file.keep && dir.stat(&file.path).map_err(failed)?.is_some() {
            continue;
        }
        dir.write(&file.path, file.content.as_bytes()).map_err(failed)?;
    }
    Ok(())
}
