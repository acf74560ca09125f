//! Asking the broker, as a platform does.

use crate::broker::Broker;
use crate::client::{Connection, request};
use crate::rows::Wanted;
use anyhow::{Result, bail};
use serde_json::Value;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// Longest wait for one operation.
const PATIENCE: Duration = Duration::from_mins(3);

/// A call of the API: method, path, body.
pub type Call = (&'static str, String, String);

/// The calls about one instance.
pub struct Instance {
    /// Makes it.
    pub put: Call,
    /// Removes it.
    pub delete: Call,
    /// Looks how far it is.
    pub poll: Call,
}

impl Instance {
    /// The instance with this id of the platform's.
    pub fn new(id: &str, wanted: &Wanted) -> Self {
        let path = format!("/v2/service_instances/{id}");
        let (service, plan) = (&wanted.service_id, &wanted.plan_id);
        Self {
            put: ("PUT", format!("{path}?accepts_incomplete=true"), wanted.body()),
            delete: (
                "DELETE",
                format!("{path}?accepts_incomplete=true&service_id={service}&plan_id={plan}"),
                String::new(),
            ),
            poll: ("GET", format!("{path}/last_operation"), String::new()),
        }
    }
}

/// Asks for an operation, which must be accepted.
pub fn accepted(broker: &Broker, (method, path, body): &Call) -> Result<()> {
    let answer = broker.call(method, path, body)?;
    if answer.status != 202 {
        bail!(
            "{method} answered {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    Ok(())
}

/// State and description of the last operation.
pub fn last(broker: &Broker, instance: &Instance) -> Result<(String, String)> {
    let (method, path, body) = &instance.poll;
    let answer = broker.call(method, path, body)?;
    let said: Value = serde_json::from_slice(&answer.body)?;
    let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("description")))
}

/// Polls every `pause` until the last operation succeeded, and says when that was.
pub fn ended(broker: &Broker, instance: &Instance, pause: Duration) -> Result<Instant> {
    let began = Instant::now();
    loop {
        let (state, description) = last(broker, instance)?;
        match state.as_str() {
            "succeeded" => return Ok(Instant::now()),
            "in progress" if began.elapsed() < PATIENCE => std::thread::sleep(pause),
            state => bail!("an operation did not succeed: {state}: {description}"),
        }
    }
}

/// Makes all calls over `clients` connections, and gives how long it took. Any other status than `expected` ends it.
pub fn each(broker: &Broker, clients: usize, calls: Vec<Call>, expected: u16) -> Result<Duration> {
    let (address, authorization) = (broker.process.address, broker.authorization.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let began = Instant::now();
    LocalSet::new().block_on(&runtime, async move {
        let waiting = Rc::new(RefCell::new(calls));
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let (waiting, authorization) = (waiting.clone(), authorization.clone());
                tokio::task::spawn_local(async move {
                    let mut connection = Connection::open(address).await?;
                    loop {
                        let next = waiting.borrow_mut().pop();
                        let Some((method, path, body)) = next else {
                            return Ok(());
                        };
                        let text = request(method, &path, &authorization, &body);
                        let answer = connection.ask(text.as_bytes(), true).await?;
                        if answer.status != expected {
                            let said = String::from_utf8_lossy(&answer.body);
                            bail!("{method} {path} answered {}: {said}", answer.status);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        anyhow::Ok(())
    })?;
    Ok(began.elapsed())
}
