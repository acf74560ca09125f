//! Binds one after the other and many at once, with every call to Keycloak and the vault counted; then unbinds.

use crate::bare::{Bare, Took};
use crate::broker::Broker;
use crate::client::{Connection, request};
use crate::place::{Place, bind_body, binding, provision};
use crate::proxy::{Calls, Proxy, shown, total};
use crate::report::{Limit, Report, median};
use crate::rows::{Wanted, guid};
use crate::unbinds;
use anyhow::{Result, bail};
use serde_json::Value;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::LocalSet;

/// Binds before any is measured: servers that just started are slow at first.
const WARM: u64 = 10;
/// Binds one after the other.
const ONE_BY_ONE: u64 = 40;
/// Binds by many clients.
const TOGETHER: u64 = 400;
/// These clients.
const CLIENTS: usize = 8;

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let place = Place::make(dir, "binds")?;
    let keycloak = Proxy::start(&place.servers.keycloak)?;
    let vault = Proxy::start(&place.servers.vault)?;
    let broker = place.serve(&place.configure("proxied", &keycloak.url(), &vault.url())?)?;
    let wanted = provision(&broker)?;
    let mut number = 0;
    let first = bind(&broker, &wanted, number)?;
    let credentials = unbinds::fetch(&place, &first)?;
    let mut bare = Bare::open(&place, &credentials.data)?;
    for n in 0..WARM {
        number += 1;
        bind(&broker, &wanted, number)?;
        place.servers.runtime.block_on(bare.all(&format!("warm-{n}")))?;
    }
    keycloak.taken();
    vault.taken();

    let (mut times, mut alone, mut ratios) = (Vec::new(), Vec::<Took>::new(), Vec::new());
    for n in 0..ONE_BY_ONE {
        number += 1;
        let began = Instant::now();
        bind(&broker, &wanted, number)?;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        let bare = place.servers.runtime.block_on(bare.all(&format!("bare-{n}")))?;
        times.push(took);
        ratios.push(took / bare.sum());
        alone.push(bare);
    }
    let (to_keycloak, to_vault) = (keycloak.taken(), vault.taken());
    let part = |part: fn(&Took) -> f64| median(&alone.iter().map(part).collect::<Vec<_>>());
    report.add(
        "bind with Keycloak, vault and PostgreSQL, one after the other",
        format!(
            "median of {ONE_BY_ONE}; 95 of 100 within {:.0} ms",
            quantile(&times, 0.95)
        ),
        median(&times),
        " ms",
        Limit::AtMost(250.0),
    );
    report.add(
        "bind, of a client, a secret and a role made without a broker",
        format!(
            "median of {ONE_BY_ONE} ratios; these take {:.0} + {:.0} + {:.0} ms",
            part(|t| t.keycloak),
            part(|t| t.vault),
            part(|t| t.postgres)
        ),
        median(&ratios),
        "",
        Limit::AtMost(5.0),
    );
    calls(report, "one after the other", ONE_BY_ONE, &to_keycloak, &to_vault)?;

    let before = broker.process.cpu()?;
    let began = Instant::now();
    let times = together(&broker, &wanted, number + 1)?;
    let took = began.elapsed().as_secs_f64();
    let cpu = (broker.process.cpu()? - before) * 1000.0 / f64::from(u32::try_from(TOGETHER)?);
    let (to_keycloak, to_vault) = (keycloak.taken(), vault.taken());
    report.add(
        format!("binds sustained by {CLIENTS} clients"),
        format!(
            "{TOGETHER} in {took:.1} s, median {:.0} ms; {cpu:.1} ms CPU of the broker each",
            median(&times)
        ),
        f64::from(u32::try_from(TOGETHER)?) / took,
        "/s",
        Limit::AtLeast(20.0),
    );
    calls(
        report,
        &format!("by {CLIENTS} clients"),
        TOGETHER,
        &to_keycloak,
        &to_vault,
    )?;
    unbinds::run(&place, &broker, &wanted, number + TOGETHER + 1, report)
}

fn calls(report: &mut Report, how: &str, of: u64, to_keycloak: &Calls, to_vault: &Calls) -> Result<()> {
    for (server, calls) in [("Keycloak", to_keycloak), ("the vault", to_vault)] {
        report.add(
            format!("calls to {server} per bind, {how}"),
            shown(calls, of)?,
            f64::from(u32::try_from(total(calls))?) / f64::from(u32::try_from(of)?),
            "",
            Limit::AtMost(3.0),
        );
    }
    Ok(())
}

/// Binds and gives the credentials that were answered.
pub fn bind(broker: &Broker, wanted: &Wanted, n: u64) -> Result<Value> {
    let answer = broker.call("PUT", &binding(n), &bind_body(wanted))?;
    if answer.status != 201 {
        bail!(
            "bind: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    let told: Value = serde_json::from_slice(&answer.body)?;
    Ok(told["credentials"].clone())
}

/// Binds [`TOGETHER`] times, each of the clients one after the other; gives the milliseconds of each.
fn together(broker: &Broker, wanted: &Wanted, first: u64) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (address, authorization, body) = (broker.process.address, &broker.authorization, bind_body(wanted));
    let next = Rc::new(Cell::new(first));
    LocalSet::new().block_on(&runtime, async move {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (next, authorization, body) = (next.clone(), authorization.clone(), body.clone());
                tokio::task::spawn_local(async move {
                    let mut connection = Connection::open(address).await?;
                    let mut times = Vec::new();
                    loop {
                        let n = next.replace(next.get() + 1);
                        if n >= first + TOGETHER {
                            return Ok(times);
                        }
                        let text = request("PUT", &binding(n), &authorization, &body);
                        let began = Instant::now();
                        let answer = connection.ask(text.as_bytes(), true).await?;
                        if answer.status != 201 {
                            let told = String::from_utf8_lossy(&answer.body).into_owned();
                            bail!("bind {}: {} {told}", guid(n), answer.status);
                        }
                        times.push(began.elapsed().as_secs_f64() * 1000.0);
                    }
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await??);
        }
        Ok(all)
    })
}

/// The value below which a share `q` of all lie.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list of some hundred"
    )]
    let at = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
