//! The load generator: as little HTTP/1.1 as the measured answers need.
//!
//! It shares two cores with what it measures, so it must cost little: kept-alive connections, one
//! prepared text per request, no parsing beyond status and length. One request at a time on each
//! connection; a connection is one client.

use anyhow::{Context, Result, anyhow, bail};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Longest wait for one answer; a broker that hangs ends the benchmark.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body, when it was asked for.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; 256 * 1024],
        })
    }

    /// Sends a whole request and reads the whole answer; the body is copied only when `keep` says so.
    pub async fn ask(&mut self, request: &[u8], keep: bool) -> Result<Answer> {
        tokio::time::timeout(PATIENCE, self.exchange(request, keep))
            .await
            .map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs()))?
    }

    async fn exchange(&mut self, request: &[u8], keep: bool) -> Result<Answer> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let head_end = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                bail!("the connection was closed inside an answer");
            }
            // The end of the head may lie across two reads.
            let from = filled.saturating_sub(3);
            filled += read;
            if let Some(at) = self.buffer[from..filled]
                .windows(4)
                .position(|w| w == b"\r\n\r\n")
            {
                break from + at + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..head_end]).context("a head that is not text")?;
        let status = head
            .get(9..12)
            .and_then(|s| s.parse().ok())
            .context("no status")?;
        let length = length(head)?;
        let mut body = Vec::new();
        if keep {
            body.extend_from_slice(&self.buffer[head_end..filled]);
        }
        let mut left = (head_end + length)
            .checked_sub(filled)
            .context("more than one answer")?;
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            if read == 0 {
                bail!("the connection was closed inside a body");
            }
            if keep {
                body.extend_from_slice(&self.buffer[..read]);
            }
            left = left.checked_sub(read).context("more than one answer")?;
        }
        Ok(Answer { status, body })
    }
}

fn length(head: &str) -> Result<usize> {
    head.lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        })
        .context("an answer without content-length")
}

/// A request text. `body` empty means none.
pub fn request(method: &str, path: &str, authorization: &str, body: &str) -> String {
    let content = if body.is_empty() {
        String::new()
    } else {
        format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\
         X-Broker-API-Version: 2.17\r\n{content}\r\n{body}"
    )
}

/// What a load run found.
pub struct Load {
    /// Answers a second.
    pub rate: f64,
    /// Microseconds of each answer, sorted.
    pub micros: Vec<u32>,
}

impl Load {
    /// The latency below which a share `q` of all answers came, in milliseconds.
    pub fn millis(&self, q: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a list of a few hundred thousand"
        )]
        let at = ((self.micros.len().saturating_sub(1)) as f64 * q).round() as usize;
        self.micros.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }
}

/// Lets `clients` connections ask `next(n)`, n counting up over all of them, for `warm` and then for `measured` time.
///
/// Errors: any answer with another status than `expected`.
pub fn load(
    to: SocketAddr,
    clients: usize,
    warm: Duration,
    measured: Duration,
    expected: u16,
    next: impl Fn(u64, &mut String) + 'static,
) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async move {
        let (next, number) = (Rc::new(next), Rc::new(Cell::new(0_u64)));
        let micros = Rc::new(RefCell::new(Vec::with_capacity(1 << 20)));
        let start = Instant::now() + warm;
        let end = start + measured;
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let (next, number, micros) = (next.clone(), number.clone(), micros.clone());
                tokio::task::spawn_local(async move {
                    let mut connection = Connection::open(to).await?;
                    let mut text = String::new();
                    loop {
                        number.set(number.get() + 1);
                        text.clear();
                        next(number.get(), &mut text);
                        let asked = Instant::now();
                        if asked >= end {
                            return Ok(());
                        }
                        let answer = connection.ask(text.as_bytes(), false).await?;
                        if answer.status != expected {
                            bail!("status {} where {expected} was expected", answer.status);
                        }
                        let done = Instant::now();
                        if asked >= start && done < end {
                            let took = done.duration_since(asked).as_micros();
                            micros.borrow_mut().push(u32::try_from(took).unwrap_or(u32::MAX));
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let mut micros = micros.take();
        micros.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
        let rate = micros.len() as f64 / measured.as_secs_f64();
        Ok(Load { rate, micros })
    })
}

/// One request over a connection of its own, with its body.
pub fn once(to: SocketAddr, text: &str) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Connection::open(to).await?.ask(text.as_bytes(), true).await })
}
