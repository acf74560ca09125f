//! `chandler reconcile`: what the rows say of bindings against what is there.

use super::{Where, exit};
use crate::app::{self, Role};
use crate::engine::{Finding, Kind, Mend, Reconciler, Report};
use anyhow::anyhow;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    #[command(flatten)]
    place: Where,
    /// Put right what is wrong or missing, as far as the broker has what it takes, and revoke once more what has ended.
    #[arg(long)]
    repair: bool,
    /// Take away what no row of the database knows. Not on a restored database: it may be in use.
    #[arg(long)]
    remove: bool,
}

pub(super) async fn run(args: ReconcileArgs) -> anyhow::Result<()> {
    let engine = app::assemble(&args.place.config()?, Role::Http).await?.engine;
    let mend = Mend {
        repair: args.repair,
        remove: args.remove,
    };
    let report = Reconciler::new(engine)
        .once(mend, &mut |finding| println!("{}", line(finding)))
        .await
        .map_err(|fail| anyhow!("{fail}"))?;
    println!("{}", summary(&report, mend));
    if report.left == 0 { Ok(()) } else { exit(1) }
}

fn line(finding: &Finding) -> String {
    format!(
        "{:<16}  {}  {}",
        finding.kind.as_str(),
        finding.what,
        finding.done
    )
}

fn summary(report: &Report, mend: Mend) -> String {
    let [clients, secrets, users, copies] = report.looked_at;
    let found: u64 = report.found.values().sum();
    let looked = format!(
        "Compared {clients} clients, {secrets} secrets, {users} users and {copies} Secrets in namespaces with the rows"
    );
    let left_out = if Kind::ALL.iter().all(|kind| report.found.contains_key(kind)) {
        ""
    } else {
        " Where there is no identity provider or vault, or it does not answer, nothing was compared with it."
    };
    match (found, report.left) {
        (0, _) => format!("{looked}: everything agrees.{left_out}"),
        (found, left) if mend == Mend::default() => {
            format!("{looked}: {found} findings, {left} to be dealt with. Nothing was changed.{left_out}")
        }
        (found, left) => format!("{looked}: {found} findings, {left} are left.{left_out}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Done;

    #[test]
    fn a_person_reads_what_is_wrong_and_what_to_do() {
        let finding = Finding {
            kind: Kind::ClientUnknown,
            what: "osb-b-x".into(),
            done: Done::Told(Kind::ClientUnknown.advice()),
        };
        assert_eq!(
            line(&finding),
            "client_unknown    osb-b-x  --remove takes it away"
        );
        let mut report = Report {
            looked_at: [3, 3, 4, 2],
            ..Report::default()
        };
        for kind in Kind::ALL {
            report.found.insert(kind, 0);
        }
        assert_eq!(
            summary(&report, Mend::default()),
            "Compared 3 clients, 3 secrets, 4 users and 2 Secrets in namespaces with the rows: everything agrees."
        );
        report.found.insert(Kind::ClientUnknown, 1);
        report.found.remove(&Kind::SecretEnded);
        report.left = 1;
        let text = summary(&report, Mend::default());
        assert!(
            text.contains("1 findings, 1 to be dealt with. Nothing was changed. Where there is no"),
            "{text}"
        );
        let mend = Mend {
            remove: true,
            ..Mend::default()
        };
        assert!(summary(&report, mend).contains("1 findings, 1 are left."));
    }
}
