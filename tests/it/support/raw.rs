//! HTTP as bytes, for requests no client library would send.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Reply {
    /// A header's value, undecoded.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON, null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Sends `request` on a connection of its own and reads one answer; none when the server just hung up.
///
/// `end` closes our side after the last byte. Panics when there is neither answer nor end within `limit`.
pub async fn send(to: SocketAddr, request: &[u8], end: bool, limit: Duration) -> Option<Reply> {
    let start = Instant::now();
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let bytes = request.to_vec();
    // Beside the reading, because a server may answer, and stop listening, before it has heard everything.
    let sending = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        if end {
            let _ = writer.shutdown().await;
        }
        writer
    });
    let bodiless = request.starts_with(b"HEAD ");
    let mut got = Vec::new();
    let reading = async {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some((status, head, body)) = complete(&got, bodiless) {
                return Some((status, head, body));
            }
            match reader.read(&mut chunk).await {
                Ok(0) | Err(_) => return at_end(&got),
                Ok(n) => got.extend_from_slice(&chunk[..n]),
            }
        }
    };
    let read = tokio::time::timeout(limit, reading).await;
    sending.abort();
    let Ok(read) = read else {
        let request = String::from_utf8_lossy(&request[..request.len().min(600)]);
        panic!(
            "no answer within {limit:?} to {request:?}, but {:?}",
            String::from_utf8_lossy(&got)
        );
    };
    read.map(|(status, head, body)| Reply {
        status,
        head,
        body,
        took: start.elapsed(),
    })
}

/// Status, head and the bytes after it, past any `100 Continue`.
fn split(got: &[u8]) -> Option<(u16, String, &[u8])> {
    let at = got.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, rest) = (String::from_utf8_lossy(&got[..at]).into_owned(), &got[at + 4..]);
    let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
    if status == 100 {
        split(rest)
    } else {
        Some((status, head, rest))
    }
}

fn complete(got: &[u8], bodiless: bool) -> Option<(u16, String, Vec<u8>)> {
    let (status, head, rest) = split(got)?;
    if bodiless || status == 304 || status == 204 {
        return Some((status, head, Vec::new()));
    }
    let lower = head.to_ascii_lowercase();
    let length: usize = lower
        .lines()
        .find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok())?;
    (rest.len() >= length).then(|| (status, head, rest[..length].to_vec()))
}

fn at_end(got: &[u8]) -> Option<(u16, String, Vec<u8>)> {
    let (status, head, rest) = split(got)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    assert!(!chunked, "an answer in chunks: {head}");
    Some((status, head, rest.to_vec()))
}
