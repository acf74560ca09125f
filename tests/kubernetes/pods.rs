//! Pods of applications: where an instance is used from, and where it must not be reachable from.

use crate::cluster::{Kubectl, tools_image};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A pod with clients, in a namespace of its own.
pub struct Tools {
    kubectl: Kubectl,
    pub namespace: String,
}

impl Tools {
    /// Starts it in a new namespace with these labels, and waits until it runs.
    pub async fn start(kubectl: &Kubectl, namespace: &str, labels: Value) -> Self {
        let image = tools_image();
        let mut all = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        all.as_object_mut()
            .unwrap()
            .extend(labels.as_object().unwrap().clone());
        let space =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": all}});
        kubectl.apply_object(&space).await;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "tools", "namespace": namespace},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}
                },
                "containers": [{
                    "name": "tools",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "7200"],
                    "env": [{"name": "HOME", "value": "/tmp"}],
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        });
        // The namespace's service account comes a moment after the namespace.
        let mut tries = 0;
        loop {
            let made = kubectl.run_with(&["create", "-f", "-"], &pod.to_string()).await;
            if made.status.success() {
                break;
            }
            tries += 1;
            assert!(tries < 40, "{}", String::from_utf8_lossy(&made.stderr));
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
        let wait = [
            "wait",
            "-n",
            namespace,
            "--for=condition=Ready",
            "pod/tools",
            "--timeout=120s",
        ];
        kubectl.ok(&wait).await;
        Self {
            kubectl: kubectl.clone(),
            namespace: namespace.into(),
        }
    }

    /// What a program in the pod writes, or what it complains about; it gets `seconds`.
    pub async fn run(&self, seconds: u32, program: &[&str]) -> Result<String, String> {
        let seconds = seconds.to_string();
        let start = ["exec", "-n", &self.namespace, "tools", "--", "timeout", &seconds];
        self.kubectl.attempt(&[&start, program].concat()).await
    }

    /// psql with the credentials of a binding.
    pub async fn psql(&self, credentials: &Value, sql: &str) -> Result<String, String> {
        let uri = format!("{}&connect_timeout=8", credentials["uri"].as_str().unwrap());
        let said = self
            .run(
                20,
                &["psql", &uri, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql],
            )
            .await?;
        Ok(said.trim().to_owned())
    }

    /// redis-cli with the credentials of a binding; what the server refuses is an error.
    pub async fn redis(&self, credentials: &Value, command: &[&str]) -> Result<String, String> {
        let port = credentials["port"].to_string();
        let of = |member: &str| credentials[member].as_str().unwrap();
        let start = [
            "redis-cli",
            "--no-auth-warning",
            "-e",
            "-h",
            of("host"),
            "-p",
            port.trim_matches('"'),
            "--user",
            of("username"),
            "--pass",
            of("password"),
        ];
        let said = self.run(15, &[&start[..], command].concat()).await?;
        let said = said.trim().to_owned();
        // A log-in that is refused is told and followed by the command, without one.
        if said.contains("AUTH failed") || said.starts_with("NOAUTH") {
            return Err(said);
        }
        Ok(said)
    }

    /// Whether a TCP connection can be opened; a server that says no at once counts as reached.
    pub async fn reaches(&self, host: &str, port: &Value) -> bool {
        let port = port.to_string();
        let script = "nc -w 4 \"$0\" \"$1\" </dev/null >/dev/null 2>&1";
        self.run(8, &["sh", "-c", script, host, port.trim_matches('"')])
            .await
            .is_ok()
    }

    /// A port of ours whose connections come out of the pod.
    pub async fn relay(&self, host: &str, port: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = listener.local_addr().unwrap().port();
        let (kubectl, namespace, host) = (self.kubectl.clone(), self.namespace.clone(), host.to_owned());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(carry(
                    kubectl.clone(),
                    namespace.clone(),
                    host.clone(),
                    port,
                    stream,
                ));
            }
        });
        Relay { port: near, task }
    }

    /// The credentials as they work for this process, through the pod.
    pub async fn through(&self, credentials: &Value) -> (Value, Relay) {
        let host = credentials["host"].as_str().unwrap();
        let port: u16 = credentials["port"].to_string().trim_matches('"').parse().unwrap();
        let relay = self.relay(host, port).await;
        let text = credentials
            .to_string()
            .replace(&format!("{host}:{port}"), &format!("127.0.0.1:{}", relay.port));
        let mut near: Value = serde_json::from_str(&text).unwrap();
        near["host"] = "127.0.0.1".into();
        near["port"] = relay.port.into();
        (near, relay)
    }
}

/// A listener that carries connections through a pod; closed when dropped.
pub struct Relay {
    pub port: u16,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(kubectl: Kubectl, namespace: String, host: String, port: u16, near: TcpStream) {
    let port = port.to_string();
    let mut child = kubectl
        .command(&[
            "exec", "-i", "-n", &namespace, "tools", "--", "nc", "-w", "600", &host, &port,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut reader, mut writer) = near.into_split();
    let there = async {
        let _ = copy(&mut reader, &mut to).await;
        let _ = to.shutdown().await;
    };
    let back = async {
        let _ = copy(&mut from, &mut writer).await;
        let _ = writer.shutdown().await;
    };
    // Either end closing ends both; kubectl ends when it is dropped.
    tokio::select! {
        () = there => {}
        () = back => {}
    }
    let _ = child.kill().await;
}
