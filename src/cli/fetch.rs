//! `chandler fetch`: an application's way to its credentials when a binding hands out only where they are.
//!
//! It proves to Keycloak whose binding it is, logs in to Vault with the token it gets, reads the binding's secret and
//! gives it to the application: as files, as lines of environment, as JSON, or as the environment of a program it
//! becomes. It knows nothing of a broker, and is small enough to run once before a container or beside it.
//!
//! What must stay true: nothing secret in arguments, logs or errors; what it writes is mode 0600 and changes at once or
//! not at all; every wait has an end; an ending says in one line which server refused and what to do.

mod output;
mod proof;
mod servers;
mod source;

use super::exit;
use crate::domain::secret::Secret;
use clap::{Args, ValueEnum};
use output::Output;
use servers::{Fetched, Servers};
use source::Coordinates;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

/// First pause after a failure that may pass, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How it ended, for scripts and pods. 2 is the command line's own for wrong arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// What was given to it is wrong or incomplete.
    Input = 2,
    /// Keycloak said no.
    Keycloak = 3,
    /// Vault said no.
    Vault = 4,
    /// A server did not answer, or was not able to, for as long as `--wait` says.
    Unavailable = 5,
    /// The credentials cannot be written, or the program not be started.
    Output = 6,
}

/// Why it did not work this time.
#[derive(Debug)]
struct Failure {
    code: Code,
    /// One line: who refused, why, what to do. Never a secret.
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn input(message: impl Into<String>) -> Self {
        Self::new(Code::Input, message)
    }

    /// Whether it may pass by itself.
    fn may_pass(&self) -> bool {
        self.code == Code::Unavailable
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// `NAME='value'` lines that a shell reads.
    Env,
    /// A directory with one file for each entry.
    Files,
    /// One JSON document.
    Json,
}

/// Where the binding is described.
#[derive(Debug, Clone, Default, Args)]
struct From {
    /// JSON file with the binding's credentials, the broker's whole answer, or what VCAP_SERVICES holds; `-` is standard
    /// input. Without it and --binding: VCAP_SERVICES, then SERVICE_BINDING_ROOT.
    #[arg(long, value_name = "FILE", conflicts_with = "binding")]
    from: Option<PathBuf>,
    /// Directory of a servicebinding.io binding.
    #[arg(long, value_name = "DIR")]
    binding: Option<PathBuf>,
    /// Which binding, where there are several: its name, or its instance's or service's.
    #[arg(long)]
    name: Option<String>,
    /// Where Keycloak gives out tokens.
    #[arg(long, value_name = "URL")]
    token_uri: Option<String>,
    /// Keycloak's realm, as its tokens name it: the audience of a signed log-in.
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The binding's client there.
    #[arg(long)]
    client_id: Option<String>,
    /// Vault's address.
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Mount of Vault's JWT log-in.
    #[arg(long, value_name = "MOUNT")]
    auth_path: Option<String>,
    /// Role of that log-in.
    #[arg(long)]
    role: Option<String>,
    /// Where the secret is, such as v1/osb/data/….
    #[arg(long, value_name = "PATH")]
    data_path: Option<String>,
    /// Vault's namespace.
    #[arg(long)]
    namespace: Option<String>,
    /// File with the client's secret, where the binding's description does not hold it.
    #[arg(long, value_name = "FILE", group = "proof")]
    client_secret_file: Option<PathBuf>,
    /// Environment variable with the client's secret.
    #[arg(long, value_name = "NAME", group = "proof")]
    client_secret_env: Option<String>,
    /// File with the private key (PEM, PKCS #8) whose public half was given when binding (client_auth private_key_jwt).
    #[arg(long, value_name = "FILE", group = "proof")]
    private_key_file: Option<PathBuf>,
    /// The key's id in the key set that was given when binding.
    #[arg(long, requires = "private_key_file")]
    key_id: Option<String>,
    /// File with a service account's token (client_auth kubernetes); it is read anew each time.
    #[arg(long, value_name = "FILE", group = "proof")]
    token_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the machine's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Send secrets over http to other addresses than this machine's own.
    #[arg(long)]
    allow_plaintext: bool,
}

/// The arguments of `chandler fetch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done; 2 something given is wrong; 3 Keycloak refuses; 4 Vault refuses; 5 one of them \
does not answer in time; 6 the credentials cannot be handed over."
)]
pub(super) struct FetchArgs {
    #[command(flatten)]
    from: From,
    /// How the credentials are written.
    #[arg(long = "as", value_enum, default_value_t = Shape::Env)]
    shape: Shape,
    /// File, or directory for `--as files`; without it standard output.
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// What names of the environment start with.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Go on: look for newer credentials, and write them when there are.
    #[arg(long, requires = "to")]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// Seconds to try again for, while a server does not answer.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    wait: u64,
    /// Program to become, with the credentials in its environment.
    #[arg(last = true, conflicts_with_all = ["to", "watch"])]
    command: Vec<String>,
}

/// Fetches and hands over; ends the program with a code of its own.
pub(super) async fn run(args: FetchArgs) -> anyhow::Result<()> {
    let stopped = async {
        // As the first process of a container nothing ends us but what we do ourselves.
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => 143,
            _ = int.recv() => 130,
        }
    };
    let watch = args.watch;
    let done = tokio::select! {
        done = work(args) => done,
        code = stopped => return if watch { Ok(()) } else { exit(code) },
    };
    done.or_else(|failure| {
        say(&failure.message);
        exit(failure.code as u8)
    })
}

/// One line on standard error: standard output may be where the credentials go.
fn say(message: &str) {
    eprintln!("chandler fetch: {message}");
}

async fn work(args: FetchArgs) -> Result<(), Failure> {
    let output = Output::new(args.shape, args.to, args.prefix, args.command)?;
    let mut work = Work {
        servers: Servers::new(args.from.ca_file.as_deref())?,
        from: args.from,
        wait: Duration::from_secs(args.wait),
    };
    let mut fetched = work.patiently(false).await?;
    output.write(&fetched.data)?;
    if !args.watch {
        return Ok(());
    }
    loop {
        say(&fetched.news());
        let every = Duration::from_secs(args.every);
        let newer = loop {
            // Half of what is left of the credentials' own life, where that is sooner.
            sleep(
                fetched
                    .left()
                    .map_or(every, |left| every.min(left / 2))
                    .max(FIRST_PAUSE),
            )
            .await;
            let now = work.patiently(true).await?;
            if now.version != fetched.version {
                break now;
            }
        };
        output.write(&newer.data)?;
        fetched = newer;
    }
}

/// Fetching with patience.
struct Work {
    from: From,
    servers: Servers,
    wait: Duration,
}

impl Work {
    /// Fetches, again and again while it may yet work: `wait` long, or for ever when the application `has` credentials
    /// already and it is only that a server does not answer. Somebody who refuses is asked again only then, as a server
    /// that was restarted may not know everything at once.
    async fn patiently(&mut self, has: bool) -> Result<Fetched, Failure> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        loop {
            let failure = match self.once().await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => failure,
            };
            let in_time = begun.elapsed() + pause <= self.wait;
            let again = match (failure.may_pass(), has) {
                (true, true) => true,
                (true, false) => in_time,
                (false, true) => in_time && failure.code != Code::Output,
                (false, false) => false,
            };
            if !again {
                return Err(failure);
            }
            if said != failure.message {
                say(&format!("{} It is tried again.", failure.message));
                said = failure.message;
            }
            // Many that were started together should not come back together.
            let jitter: f64 = rand::random_range(0.5..1.0);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Reads the binding's description anew, as it may be replaced while we run, and asks both servers.
    async fn once(&mut self) -> Result<Fetched, Failure> {
        let coordinates = Coordinates::read(&self.from)?;
        self.servers.fetch(&coordinates).await
    }
}

/// The members of a secret as texts: what is no text is written as JSON.
fn texts(data: &Secret) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    data.expose()
        .iter()
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}
