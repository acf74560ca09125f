//! The life of one instance on this machine: chosen, made, watched, erased. Everything here blocks.
//!
//! Every function is called with the instance's lock held and may be repeated at any point of its
//! own earlier work. The pattern is look (`/proc`, [`procfs`]), write down what comes next
//! ([`Run`]), act. What was written down decides how to read what is seen after a crash: while
//! [`Phase::Init`], processes are a left-over init; while [`Phase::Starting`], the service itself.

use super::files::{self, Dir};
use super::ports::Ports;
use super::procfs::{self, Leader, Process};
use super::state::{self, Facts, Memory, Phase, Run};
use super::users::{self, Account};
use super::{binaries, start, trouble, words};
use crate::domain::catalog::{Offering, ProcessTemplate};
use crate::domain::instance::Endpoint;
use crate::domain::manifest::{ChangeAction, ProcessSpec};
use crate::domain::names;
use crate::ports::{Observation, PortError, PortErrorKind, PortResult, Removal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where the services of this broker live on this machine.
pub(super) struct Host {
    /// Holds the instances' directories; belongs to us, others may only pass through.
    pub root: PathBuf,
    /// What is remembered about them.
    pub memory: Memory,
    /// Their ports.
    pub ports: Ports,
    /// Whom everything runs as, instead of the catalog's candidates.
    pub run_as: Option<String>,
    /// Our own children, so that they are reaped and their exit codes read.
    pub children: Mutex<HashMap<String, Vec<Child>>>,
}

/// What a look at an instance's processes shows.
enum Life {
    /// The service runs.
    Running(Leader),
    /// Only remains of it do: of an init or of a server whose first process is gone.
    Remains,
    /// Nothing does.
    Nothing,
}

impl Host {
    /// The instance's directory.
    pub fn home(&self, iid: &str) -> PathBuf {
        self.root.join(iid)
    }

    fn trash(&self, iid: &str) -> PathBuf {
        self.root.join(format!(".trash-{iid}"))
    }

    /// Whom a service would run as.
    pub fn account(&self, template: &ProcessTemplate) -> PortResult<Account> {
        users::choose(self.run_as.as_deref(), &template.user)
    }

    /// Why nothing can run here as `account`, if so.
    pub fn obstacle(&self, account: &Account) -> Option<String> {
        if nix::unistd::geteuid().is_root() && !procfs::may_see_other_users() {
            return Some(
                "The broker is root without CAP_SYS_PTRACE and cannot see the processes it starts: grant it, or run the broker as an ordinary user.".into(),
            );
        }
        users::closed_directory(&self.root, account).map(|dir| {
            format!(
                "The user {} may not enter {}: run `chmod o+x` on it, or choose another data directory.",
                account.name,
                dir.display()
            )
        })
    }

    /// Chooses user, binaries and ports, and makes the directory; or returns what was chosen before.
    pub fn place(&self, iid: &str, offering: &Offering) -> PortResult<Map<String, Value>> {
        let template = offering
            .process
            .as_ref()
            .ok_or_else(|| PortError::invalid(format!("{} cannot run as a local process.", offering.name)))?;
        if self.memory.run(iid).removing {
            return Err(being_removed());
        }
        let before = self.memory.facts(iid)?;
        let mut facts = match before.clone() {
            Some(facts) => facts,
            None => Facts {
                offering: offering.name.clone(),
                account: self.account(template)?,
                ports: BTreeMap::new(),
                bin: BTreeMap::new(),
            },
        };
        if let Some(obstacle) = self.obstacle(&facts.account) {
            return Err(PortError::denied(obstacle));
        }
        for (name, candidates) in &template.binaries {
            // A kept choice stays while it works: data written by one version need not suit another.
            let kept = facts
                .bin
                .get(name)
                .is_some_and(|path| users::may_execute(path, &facts.account));
            if !kept {
                let path = binaries::find(candidates, &facts.account).ok_or_else(|| {
                    PortError::denied(format!(
                        "{name} was not found on this machine: {}",
                        template.install
                    ))
                })?;
                facts.bin.insert(name.clone(), path);
            }
        }
        // Before the ports: a reservation counts for as long as the directory exists.
        Dir::ensure(&self.home(iid), &facts.account)
            .map_err(|e| trouble("make the instance's directory", &e))?;
        self.ports
            .reserve(iid, &template.ports, &mut facts.ports, &|owner| {
                self.exists(owner)
            })?;
        if before.as_ref() != Some(&facts) {
            self.memory.keep_facts(iid, &facts)?;
            state::sync_dir(&self.root).map_err(|e| trouble("make the instance's directory", &e))?;
        }
        let home = self.home(iid);
        let mut placement = Map::new();
        placement.insert("ports".into(), json!(facts.ports));
        placement.insert(
            "dirs".into(),
            json!({"root": home, "init": home.join(start::INIT)}),
        );
        placement.insert("bin".into(), json!(facts.bin));
        placement.insert("host".into(), json!("127.0.0.1"));
        Ok(placement)
    }

    /// Whether anything of an instance is kept here: directory, trash or memory.
    pub fn exists(&self, iid: &str) -> bool {
        self.home(iid).exists() || self.trash(iid).exists() || self.memory.knows(iid)
    }

    fn facts(&self, iid: &str) -> PortResult<Facts> {
        self.memory.facts(iid)?.ok_or_else(|| {
            PortError::new(
                PortErrorKind::Gone,
                "The instance has no place on this machine (any more).",
            )
        })
    }

    /// Makes files and process like `spec`; returns while the server boots.
    pub fn apply(&self, iid: &str, spec: &ProcessSpec) -> PortResult<()> {
        start::check(spec)?;
        let facts = self.facts(iid)?;
        let mut run = self.memory.run(iid);
        if run.removing {
            return Err(being_removed());
        }
        match self.look(iid, &mut run)? {
            Life::Running(leader) => {
                if !self.settle(iid, &facts, spec, leader, &mut run)? {
                    return Ok(());
                }
            }
            Life::Remains => {
                signal_all(&self.family(iid)?, Signal::SIGKILL)?;
                if !self.wait_gone(iid)? {
                    return Err(PortError::transient(format!(
                        "What is left of {} is still ending.",
                        facts.offering
                    )));
                }
            }
            Life::Nothing => {}
        }
        run.note_end(procfs::uptime_ms());
        let (command, files) = state::hashes(spec);
        if run.command != command || run.files != files {
            run.crashes = 0;
        }
        if run.given_up(procfs::uptime_ms()) {
            // Observing tells why; starting it again this soon would end the same way.
            return self.memory.keep_run(iid, &run);
        }
        let started = start::Start {
            host: self,
            iid,
            facts: &facts,
            spec,
        };
        started.go(&mut run)
    }

    /// Brings a running service to `spec`. Says whether it has ended and is to be started now.
    fn settle(
        &self,
        iid: &str,
        facts: &Facts,
        spec: &ProcessSpec,
        leader: Leader,
        run: &mut Run,
    ) -> PortResult<bool> {
        let (command, files) = state::hashes(spec);
        if run.stopping.is_some() {
            return self.press(iid, run);
        }
        if run.command == command && run.files == files {
            if run.stop != spec.stop {
                run.stop = spec.stop.clone();
            }
            self.memory.keep_run(iid, run)?;
            return Ok(false);
        }
        if run.command == command && spec.change == ChangeAction::Reload {
            start::write_files(&self.home(iid), facts, spec)?;
            kill_one(leader.pid, Signal::SIGHUP)?;
            run.files = files;
            self.memory.keep_run(iid, run)?;
            return Ok(false);
        }
        self.press(iid, run)
    }

    /// Asks the processes to stop, or kills them once their time is over; says whether they are gone.
    ///
    /// Waits no more than a moment: the caller comes again.
    fn press(&self, iid: &str, run: &mut Run) -> PortResult<bool> {
        let now = procfs::uptime_ms();
        let family = self.family(iid)?;
        let asked = run.stopping.is_some();
        let orphans = match run.phase {
            Phase::Running(leader) => !procfs::lives(leader),
            Phase::Init | Phase::Exited => true,
            Phase::Idle | Phase::Starting => false,
        };
        if !asked {
            run.stopping = Some(now);
            // First written down: what ends after this was stopped, it did not crash.
            self.memory.keep_run(iid, run)?;
        }
        if orphans || (asked && run.grace_over(now)) {
            signal_all(&family, Signal::SIGKILL)?;
        } else if !asked {
            let signal = start::stop_signal(&run.stop).unwrap_or(Signal::SIGTERM);
            signal_all(&procfs::roots(&family), signal)?;
        }
        self.wait_gone(iid)
    }

    /// Looks how far it is.
    pub fn observe(&self, iid: &str, spec: &ProcessSpec) -> PortResult<Observation> {
        let Some(facts) = self.memory.facts(iid)? else {
            return Ok(Observation::Absent("nothing has been made yet".into()));
        };
        let name = &facts.offering;
        let before = self.memory.run(iid);
        if before.removing {
            return Ok(Observation::Progressing(format!("{name} is being removed")));
        }
        let mut run = before.clone();
        let seen = match self.look(iid, &mut run)? {
            Life::Running(_) if run.stopping.is_some() => {
                if self.press(iid, &mut run)? {
                    run.note_end(procfs::uptime_ms());
                    Observation::Absent(format!("{name} is stopped"))
                } else {
                    Observation::Progressing(format!("{name} is stopping"))
                }
            }
            Life::Running(_) if answers(&facts, spec)? => {
                run.note_ready(procfs::uptime_ms());
                Observation::Ready(endpoints(&facts))
            }
            Life::Running(_) if run.ready => {
                Observation::Progressing(format!("{name} runs but does not accept connections"))
            }
            Life::Running(_) => Observation::Progressing(format!("{name} is starting")),
            Life::Remains | Life::Nothing => {
                run.note_end(procfs::uptime_ms());
                self.ended(iid, &facts, spec, &run)
            }
        };
        if run != before {
            self.memory.keep_run(iid, &run)?;
        }
        Ok(seen)
    }

    fn ended(&self, iid: &str, facts: &Facts, spec: &ProcessSpec, run: &Run) -> Observation {
        let name = &facts.offering;
        if run.phase != Phase::Exited {
            return Observation::Absent(format!("{name} is stopped"));
        }
        let how = if run.ending.is_empty() {
            String::new()
        } else {
            format!(" ({})", run.ending)
        };
        if !run.given_up(procfs::uptime_ms()) {
            return Observation::Absent(format!("{name} ended by itself{how}"));
        }
        let home = self.home(iid);
        let log = Dir::open(&home, &facts.account)
            .map(|dir| dir.tail(start::LOG, run.log_from, 16 * 1024))
            .unwrap_or_default();
        let said = match words::last_words(&log, spec, &home) {
            text if text.is_empty() => "It wrote nothing to its log".to_owned(),
            text => format!("Its log says: {text}"),
        };
        Observation::Failed(format!(
            "{name} ended by itself {} times in a row{how}. {said}. Change the parameters that caused it, or delete the instance and create it again.",
            run.crashes
        ))
    }

    /// Stops the processes, erases the directory, gives the ports back, in this order.
    pub fn remove(&self, iid: &str) -> PortResult<Removal> {
        let mut run = self.memory.run(iid);
        if !run.removing && self.exists(iid) {
            run.removing = true;
            // From here on a late `apply` of a superseded operation starts nothing.
            self.memory.keep_run(iid, &run)?;
        }
        self.reap(iid, &mut run);
        if !self.family(iid)?.is_empty() && !self.press(iid, &mut run)? {
            return Ok(Removal::StillGoing("its processes are stopping".into()));
        }
        self.reap(iid, &mut run);
        self.children().remove(iid);
        self.erase(iid)
            .map_err(|e| trouble("erase the instance's directory", &e))?;
        self.ports.release(iid)?;
        self.memory.forget(iid)?;
        Ok(Removal::Gone)
    }

    fn erase(&self, iid: &str) -> io::Result<()> {
        let (home, trash) = (self.home(iid), self.trash(iid));
        erase_dir(&trash)?;
        match std::fs::rename(&home, &trash) {
            Ok(()) => erase_dir(&trash),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Finishes erasing what a crash left half erased. Errors are left to the next `remove`, which meets them again.
    pub fn sweep_trash(&self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(".trash-"))
            {
                let _ = erase_dir(&entry.path());
            }
        }
    }

    /// Asks the processes to stop; says whether they are gone. Data stays, and `apply` starts them again.
    pub fn stop(&self, iid: &str) -> PortResult<bool> {
        let mut run = self.memory.run(iid);
        let gone = match self.look(iid, &mut run)? {
            Life::Nothing => true,
            Life::Running(_) | Life::Remains => self.press(iid, &mut run)?,
        };
        if gone && self.memory.facts(iid)?.is_some() {
            self.reap(iid, &mut run);
            run.note_end(procfs::uptime_ms());
            self.memory.keep_run(iid, &run)?;
        }
        Ok(gone)
    }

    /// Everything that has a directory, a process, a port or a memory here.
    pub fn list(&self) -> PortResult<Vec<String>> {
        let mut found = self.ports.owners()?;
        let entries = std::fs::read_dir(&self.root).map_err(|e| trouble("list the instances", &e))?;
        let dirs: BTreeSet<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let running = procfs::occupied(&self.root).map_err(|e| trouble("list the processes", &e))?;
        for name in dirs.iter().chain(&running).chain(&self.memory.known()?) {
            found.insert(name.strip_prefix(".trash-").unwrap_or(name).to_owned());
        }
        found.retain(|name| names::is_name(name));
        Ok(found.into_iter().collect())
    }

    /// What runs of an instance, with what was written down about it.
    fn look(&self, iid: &str, run: &mut Run) -> PortResult<Life> {
        self.reap(iid, run);
        // Reading one process is enough while the known one lives; the whole of /proc is read only when it does not.
        if let Phase::Running(leader) = run.phase
            && procfs::lives(leader)
        {
            return Ok(Life::Running(leader));
        }
        self.await_ending(iid, run);
        let family = self.family(iid)?;
        let Some(first) = procfs::roots(&family).first().copied() else {
            return Ok(Life::Nothing);
        };
        Ok(match run.phase {
            Phase::Running(_) | Phase::Init | Phase::Exited => Life::Remains,
            // The broker died between starting it and writing down its pid.
            Phase::Starting | Phase::Idle => {
                let leader = Leader {
                    pid: first.pid,
                    start: first.start,
                };
                run.phase = Phase::Running(leader);
                Life::Running(leader)
            }
        })
    }

    /// All living processes of an instance.
    pub fn family(&self, iid: &str) -> PortResult<Vec<Process>> {
        procfs::family(&[&self.home(iid), &self.trash(iid)]).map_err(|e| trouble("list the processes", &e))
    }

    /// Waits up to half a second until no process is left: most servers stop faster than an engine's round trip.
    fn wait_gone(&self, iid: &str) -> PortResult<bool> {
        for _ in 0..50 {
            if self.family(iid)?.is_empty() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }

    /// Our children; a poisoned lock only means that a thread died, the list is still right.
    pub fn children(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Child>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects a leader that is our child and has just ended: its last threads may take a moment to follow it.
    fn await_ending(&self, iid: &str, run: &mut Run) {
        for _ in 0..20 {
            self.reap(iid, run);
            let ending = matches!(run.phase, Phase::Running(leader) if self
                .children()
                .get(iid)
                .is_some_and(|mine| mine.iter().any(|child| i64::from(child.id()) == i64::from(leader.pid))));
            if !ending {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Collects ended children of ours, so that no zombie stays, and keeps how the service ended.
    fn reap(&self, iid: &str, run: &mut Run) {
        let mut children = self.children();
        let Some(mine) = children.get_mut(iid) else {
            return;
        };
        mine.retain_mut(|child| match child.try_wait() {
            Ok(Some(status)) => {
                if let Phase::Running(leader) = run.phase
                    && i64::from(leader.pid) == i64::from(child.id())
                {
                    run.ending = start::ending(status);
                }
                false
            }
            Ok(None) => true,
            Err(_) => false,
        });
        if mine.is_empty() {
            children.remove(iid);
        }
    }
}

fn being_removed() -> PortError {
    PortError::new(PortErrorKind::Gone, "The instance is being removed.")
}

/// Signals processes that were just looked up. Pids are handed out in turn, so one is not used again this soon.
pub(super) fn signal_all(processes: &[Process], signal: Signal) -> PortResult<()> {
    processes
        .iter()
        .try_for_each(|process| kill_one(process.pid, signal))
}

fn kill_one(pid: i32, signal: Signal) -> PortResult<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(e) => Err(trouble("signal the service's process", &e.into())),
    }
}

fn erase_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether the ready port accepts a connection within a second.
fn answers(facts: &Facts, spec: &ProcessSpec) -> PortResult<bool> {
    let port = facts.ports.get(&spec.ready.tcp).ok_or_else(|| {
        PortError::invalid(format!(
            "The service has no port named {:?} to wait for.",
            spec.ready.tcp
        ))
    })?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
    Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
}

fn endpoints(facts: &Facts) -> Vec<Endpoint> {
    facts
        .ports
        .iter()
        .map(|(name, port)| Endpoint {
            name: name.clone(),
            host: "127.0.0.1".into(),
            port: *port,
        })
        .collect()
}

/// Whether every path in a spec may be written.
pub(super) fn plain_or_invalid(path: &str, what: &str) -> PortResult<()> {
    if files::is_plain(path) {
        return Ok(());
    }
    Err(PortError::invalid(format!(
        "The service's description names the {what} {path:?}: it must be a relative path without `..`, and not `log` or `.init`."
    )))
}
