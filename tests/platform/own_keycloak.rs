//! A Keycloak that a test may stop: its own copy of the testbed's, with its own small database, on loopback.

use crate::support::free_port;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One server; its process group goes with it.
pub struct Keycloak {
    /// Its address, over TLS.
    pub url: String,
    /// The authority of its certificate, PEM; nobody else knows it.
    pub authority: Vec<u8>,
    /// Password of the administrator `admin`.
    pub password: String,
    ports: [u16; 2],
    home: PathBuf,
    options: Vec<String>,
    child: Option<Child>,
    dir: TempDir,
}

impl Keycloak {
    /// Starts one and returns as soon as it listens, which is before it is ready.
    pub fn start(options: &[String]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-keycloak-")
            .tempdir()
            .unwrap();
        let home = dir.path().join("home");
        // Links, where that is possible: nothing but `data` is written to, and that is not there yet.
        let built = built();
        let copied = ["-al", "-a"].into_iter().any(|how| {
            drop(fs::remove_dir_all(&home));
            let mut copy = Command::new("cp");
            copy.arg(how).arg(&built).arg(&home).stderr(Stdio::null());
            copy.status().unwrap().success()
        });
        assert!(copied, "{} cannot be copied", built.display());
        let ports = [free_port(), free_port()];
        let authority = certificate(dir.path());
        let mut own = Self {
            url: format!("https://127.0.0.1:{}", ports[0]),
            authority,
            password: "a-password-for-tests".into(),
            ports,
            home,
            options: options.to_vec(),
            child: None,
            dir,
        };
        own.run();
        own
    }

    fn run(&mut self) {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = Command::new(self.home.join("bin/kc.sh"));
        command
            .args(["start", "--optimized", "--cache=local", "--hostname-strict=false"])
            .args([
                "--http-host=127.0.0.1",
                "--http-management-host=127.0.0.1",
                "--http-management-scheme=http",
            ])
            .arg(format!("--https-port={}", self.ports[0]))
            .arg(format!("--http-management-port={}", self.ports[1]))
            .arg(format!("--https-certificate-file={}", file("tls.crt")))
            .arg(format!("--https-certificate-key-file={}", file("tls.key")))
            .args(&self.options)
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", "admin")
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", &self.password)
            .env("JAVA_OPTS_KC_HEAP", "-Xms128m -Xmx512m");
        if let Some(java) = crate::servers::java_17() {
            command.env("JAVA_HOME", java);
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_until("listens", |own| {
            std::net::TcpStream::connect(("127.0.0.1", own.ports[0])).is_ok()
        });
    }

    fn wait_until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(180);
        while !reached(self) {
            let ended = self
                .child
                .as_mut()
                .is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))));
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(!ended, "Keycloak ended before it {what}: {}", log());
            assert!(Instant::now() < deadline, "Keycloak never {what}: {}", log());
            sleep(Duration::from_millis(50));
        }
    }

    /// Stops it as an operator does and starts it again with what it has stored.
    pub fn restart(&mut self) {
        self.stop(Signal::SIGTERM);
        self.run();
    }

    fn stop(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let _ = killpg(group, signal);
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_))) {
            sleep(Duration::from_millis(50));
        }
        // The script may end before its Java: whatever is left of the group goes now.
        let _ = killpg(group, Signal::SIGKILL);
        drop(child.wait());
    }
}

impl Drop for Keycloak {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
    }
}

/// The testbed's Keycloak as it was unpacked and optimised; fetched when it is not there.
fn built() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/servers/keycloak/build");
    let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "Keycloak cannot be had");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A certificate for 127.0.0.1 in `dir`; returns that of the authority that signed it.
fn certificate(dir: &Path) -> Vec<u8> {
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    let calls = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca -addext keyUsage=critical,keyCertSign",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls.key -out tls.csr -subj /CN=keycloak",
        "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out tls.crt -extfile names",
    ];
    for call in calls {
        let done = Command::new("openssl")
            .current_dir(dir)
            .args(call.split(' '))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    fs::read(dir.join("ca.crt")).unwrap()
}
