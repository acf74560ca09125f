//! Logs and metrics.
//!
//! Secrets stay out by construction, not by searching for them: secret types (`domain::secret::Secret`,
//! `config::Hidden`, `secrecy`) have no readable `Debug`, and other crates' events are capped at
//! `info` whatever the settings say, because libraries write SQL with passwords and HTTP headers
//! into their debug output. sqlx is silenced below errors: it warns about slow statements with their text. scylla
//! is silenced whole: it calls a refused log-in an error, and all it has to say comes back from the call.
//!
//! Metrics have bounded labels only: words of this program, status codes and offering names from
//! the catalog. Never an id, a platform's text or a path as it was sent.

use crate::domain::operation::{Operation, OperationKind, OperationState};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Map, Value};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Span, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::{FormatFields, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The forms a log line can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object on each line: `at`, `level`, `target`, `message`, the event's fields and those of its spans.
    Json,
    /// Lines for people.
    Text,
}

/// Reads a log filter such as `info,chandler::engine=debug`.
pub fn parse_filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(text)
}

/// What no setting can undo: only this crate logs below `info`, and database drivers never show a statement.
fn cap() -> Targets {
    Targets::new()
        .with_default(Level::INFO)
        .with_target("chandler", Level::TRACE)
        .with_target("sqlx", LevelFilter::ERROR)
        .with_target("scylla", LevelFilter::OFF)
        .with_target("actix_server", LevelFilter::WARN)
        // Quotes what it cannot parse, which may be a Secret, and calls every busy server an error. Our client says it better.
        .with_target("kube_client", LevelFilter::OFF)
}

fn layer<W>(format: Format, filter: EnvFilter, writer: W) -> impl Layer<Registry> + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let fmt = tracing_subscriber::fmt::layer().with_writer(writer);
    let boxed: Box<dyn Layer<Registry> + Send + Sync> = match format {
        Format::Json => fmt.fmt_fields(JsonFields::new()).event_format(FlatJson).boxed(),
        Format::Text => fmt.with_target(false).with_ansi(false).boxed(),
    };
    // Filters of the whole stack, not of one layer: a per-layer filter remembers its last "no" for the next line, and
    // libraries that only ask whether they would be heard (sqlx does, for each notice of the server) swallow that line.
    cap().and_then(filter).and_then(boxed)
}

/// Sends all log lines of the process to standard error.
///
/// `filter` is the setting `log.level`. An error says why the filter cannot be used or that logging is set up already.
pub fn init(format: Format, filter: &str) -> Result<(), String> {
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = parse_filter(filter).map_err(|error| format!("log.level: {error}"))?;
    tracing_subscriber::registry()
        .with(layer(format, filter, io::stderr))
        .try_init()
        .map_err(|error| format!("logging cannot be set up: {error}"))
}

/// Writes an event as one JSON object, the fields of its spans (outermost first) laid flat into it.
struct FlatJson;

impl<S, N> FormatEvent<S, N> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut at = String::new();
        SystemTime.format_time(&mut Writer::new(&mut at))?;
        let mut line = Map::new();
        line.insert("at".to_owned(), at.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        for span in ctx
            .event_scope()
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                line.extend(serde_json::from_str::<Map<String, Value>>(fields).unwrap_or_default());
            }
        }
        let mut fields = String::new();
        JsonFields::new().format_fields(Writer::new(&mut fields), event)?;
        line.extend(serde_json::from_str::<Map<String, Value>>(&fields).unwrap_or_default());
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// The span of one claim of an operation: every line in it can be found by operation, instance, binding and request.
pub fn operation_span(operation: &Operation) -> Span {
    tracing::info_span!(
        "operation",
        operation = operation.id,
        kind = operation.kind.as_str(),
        offering = operation.offering,
        iid = operation.iid,
        bid = operation.bid,
        attempt = operation.attempt,
        request_id = operation.request_id,
    )
}

/// Log lines caught in memory, for tests that search them.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Every line so far, as JSON text.
    pub fn all(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The lines that hold `text`.
    pub fn containing(&self, text: &str) -> Vec<String> {
        self.all()
            .into_iter()
            .filter(|line| line.contains(text))
            .collect()
    }
}

/// Writes into [`Lines`].
pub struct LinesWriter(Lines);

impl io::Write for LinesWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LinesWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LinesWriter(self.clone())
    }
}

fn capturing(lines: &Lines) -> impl Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry().with(layer(Format::Json, EnvFilter::new("trace"), lines.clone()))
}

/// Catches what this thread logs until the guard is dropped, at the most talkative level a configuration can choose.
pub fn capture() -> (DefaultGuard, Lines) {
    let lines = Lines::default();
    (tracing::subscriber::set_default(capturing(&lines)), lines)
}

/// Catches what the whole process logs from now on, as [`capture`]; every call gives the same lines.
pub fn capture_all() -> Lines {
    static ALL: OnceLock<Lines> = OnceLock::new();
    ALL.get_or_init(|| {
        use tracing_subscriber::util::SubscriberInitExt;
        let lines = Lines::default();
        // Fails only when the process logs elsewhere already; then there is nothing to catch.
        let _ = capturing(&lines).try_init();
        lines
    })
    .clone()
}

/// Upper bounds of the buckets for seconds: from a cached answer to a database that takes minutes to start.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0,
];
/// Upper bounds of the buckets for writes that shared one commit.
const GROUP: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The recorder of this process, installed at the first call.
///
/// When another recorder was there first, the handle renders nothing.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = builder().unwrap_or_default().build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed: /metrics stays empty");
        }
        describe();
        handle
    })
}

/// Fails for an empty list of bounds only.
fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(HTTP_SECONDS.to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full(OPERATION_SECONDS.to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full(STORE_GROUP.to_owned()), &GROUP)
}

/// Everything for `/metrics`, in the Prometheus text format.
pub fn render() -> String {
    metrics().render()
}

/// Folds recorded histogram samples together; call it every few seconds, or they pile up while nobody scrapes.
pub fn upkeep() {
    metrics().run_upkeep();
}

const BUILD: &str = "chandler_build_info";
const HTTP_TOTAL: &str = "chandler_http_requests_total";
const HTTP_SECONDS: &str = "chandler_http_request_seconds";
const HTTP_FAILED_LOGINS: &str = "chandler_http_failed_logins_total";
const OPERATIONS_STARTED: &str = "chandler_operations_started_total";
const OPERATIONS_FINISHED: &str = "chandler_operations_finished_total";
const OPERATION_SECONDS: &str = "chandler_operation_seconds";
const OPERATIONS_OPEN: &str = "chandler_operations_open";
const RETRIES: &str = "chandler_step_retries_total";
const STORE_GROUP: &str = "chandler_store_group_writes";
/// Counted by the adapter, which does not import this file.
const KUBERNETES_REQUESTS: &str = "chandler_kubernetes_requests_total";
const SWEPT: &str = "chandler_swept_total";
const RECONCILE_FINDINGS: &str = "chandler_reconcile_findings";

fn describe() {
    describe_gauge!(BUILD, "Always 1; the label tells the version.");
    describe_counter!(
        HTTP_TOTAL,
        "Requests answered, by route pattern, method and status class."
    );
    describe_counter!(HTTP_FAILED_LOGINS, "Requests with a wrong user name or password.");
    describe_histogram!(HTTP_SECONDS, Unit::Seconds, "Time from request to answer.");
    describe_counter!(OPERATIONS_STARTED, "Operations accepted, by kind and offering.");
    describe_counter!(
        OPERATIONS_FINISHED,
        "Operations ended, by kind, offering and outcome."
    );
    describe_histogram!(
        OPERATION_SECONDS,
        Unit::Seconds,
        "Time from accepting an operation to its end."
    );
    describe_gauge!(OPERATIONS_OPEN, "Operations that are accepted and not ended.");
    describe_counter!(
        RETRIES,
        "Steps tried again after a failure that may pass, by kind and offering."
    );
    describe_histogram!(STORE_GROUP, "Writes that shared one commit.");
    describe_counter!(
        KUBERNETES_REQUESTS,
        "Requests to the Kubernetes API server, by verb, kind and status class."
    );
    describe_counter!(SWEPT, "Things the sweep dealt with, by what they were.");
    describe_gauge!(
        RECONCILE_FINDINGS,
        "What did not agree when bindings were last compared with what is there, by kind."
    );
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// An operation was accepted. `offering` is a name from the catalog.
pub fn operation_started(kind: OperationKind, offering: &str) {
    counter!(OPERATIONS_STARTED, "kind" => kind.as_str(), "offering" => offering.to_owned()).increment(1);
}

/// An operation ended, `seconds` after it was accepted.
pub fn operation_finished(kind: OperationKind, offering: &str, outcome: OperationState, seconds: f64) {
    let labels = [
        ("kind", kind.as_str().to_owned()),
        ("offering", offering.to_owned()),
        ("outcome", outcome.as_str().to_owned()),
    ];
    counter!(OPERATIONS_FINISHED, &labels).increment(1);
    histogram!(OPERATION_SECONDS, &labels).record(seconds);
}

/// So many operations are open.
#[expect(
    clippy::cast_precision_loss,
    reason = "a count of operations is far below 2^52"
)]
pub fn operations_open(count: u64) {
    gauge!(OPERATIONS_OPEN).set(count as f64);
}

/// A step will be tried again.
pub fn step_retried(kind: OperationKind, offering: &str) {
    counter!(RETRIES, "kind" => kind.as_str(), "offering" => offering.to_owned()).increment(1);
}

/// So many writes shared one commit.
pub fn store_group(writes: u32) {
    histogram!(STORE_GROUP).record(f64::from(writes));
}

/// The last comparison found `count` things of the kind `kind`, such as `client_unknown`.
#[expect(clippy::cast_precision_loss, reason = "a count of bindings is far below 2^52")]
pub fn reconciled(kind: &'static str, count: u64) {
    gauge!(RECONCILE_FINDINGS, "kind" => kind).set(count as f64);
}

/// The sweep dealt with `count` things of the kind `what`, such as `expired_binding`.
pub fn swept(what: &'static str, count: u64) {
    counter!(SWEPT, "what" => what).increment(count);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn operation() -> Operation {
        Operation {
            id: "op1".to_owned(),
            kind: OperationKind::Bind,
            iid: "iid1".to_owned(),
            bid: Some("bid1".to_owned()),
            offering: "postgres".to_owned(),
            target: None,
            state: OperationState::Open,
            step: "issue".to_owned(),
            failing: None,
            attempt: 3,
            tries: 0,
            failures: 0,
            due_at: 0,
            deadline_at: 0,
            description: String::new(),
            instance_usable: None,
            update_repeatable: None,
            request_id: Some("req1".to_owned()),
            created_at: 0,
            finished_at: None,
        }
    }

    /// As sqlx does for every notice of the server: it asks whether anybody listens, hears no, and says nothing.
    #[test]
    fn a_question_of_a_library_does_not_swallow_the_next_line() {
        use tracing::log::{Level, log_enabled};
        let lines = capture_all();
        for n in 0..3 {
            assert!(!log_enabled!(target: "sqlx::postgres::notice", Level::Info));
            tracing::info!(n, "the line after the question");
        }
        assert_eq!(lines.containing("the line after the question").len(), 3);
    }

    #[test]
    fn a_line_carries_the_ids_of_its_spans() {
        let (guard, lines) = capture();
        tracing::info_span!("request", platform = "cf").in_scope(|| {
            operation_span(&operation()).in_scope(|| tracing::info!(answer = 42, "issued"));
        });
        drop(guard);
        tracing::info!("after");
        let all = lines.all();
        assert_eq!(all.len(), 1);
        let line: Value = serde_json::from_str(&all[0]).unwrap();
        for (field, value) in [
            ("level", "INFO"),
            ("message", "issued"),
            ("operation", "op1"),
            ("iid", "iid1"),
            ("bid", "bid1"),
            ("request_id", "req1"),
            ("platform", "cf"),
            ("kind", "bind"),
            ("target", module_path!()),
        ] {
            assert_eq!(line[field], value, "{field}");
        }
        assert_eq!((&line["answer"], &line["attempt"]), (&42.into(), &3.into()));
        assert!(line["at"].as_str().unwrap().starts_with("20"));
        assert_eq!(lines.containing("op1").len(), 1);
    }

    #[test]
    fn text_cannot_forge_a_line() {
        let (_guard, lines) = capture();
        tracing::info!(instance_id = "x\"}\n{\"level\":\"ERROR\"", "one\ntwo");
        assert_eq!(lines.all().len(), 1);
        assert!(serde_json::from_str::<Value>(&lines.all()[0]).is_ok());
    }

    #[test]
    fn other_crates_never_log_below_info_and_drivers_show_no_statement() {
        let (_guard, lines) = capture();
        tracing::trace!(target: "chandler::engine", "ours");
        tracing::debug!(target: "h2::frame", "hunter2");
        tracing::debug!(target: "async_nats", "hunter2");
        tracing::warn!(target: "sqlx::query", "ALTER ROLE x PASSWORD 'hunter2'");
        tracing::error!(target: "scylla::client::session", "ALTER ROLE x PASSWORD 'hunter2'");
        tracing::warn!(target: "rustls", "theirs");
        assert_eq!(
            (lines.containing("ours").len(), lines.containing("theirs").len()),
            (1, 1)
        );
        assert_eq!(lines.containing("hunter2"), Vec::<String>::new());
    }

    #[test]
    fn filters_follow_the_setting() {
        for (filter, info, debug) in [
            ("info", 1, 0),
            ("warn", 0, 0),
            ("info,chandler::engine=debug", 1, 1),
            ("", 1, 0),
        ] {
            let lines = Lines::default();
            let subscriber = tracing_subscriber::registry().with(layer(
                Format::Text,
                parse_filter(filter).unwrap(),
                lines.clone(),
            ));
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(target: "chandler::engine", "aaa");
                tracing::debug!(target: "chandler::engine", "bbb");
            });
            assert_eq!(
                (lines.containing("aaa").len(), lines.containing("bbb").len()),
                (info, debug),
                "{filter}"
            );
        }
        assert!(parse_filter("chandler=loud").is_err());
    }

    #[test]
    fn metrics_have_help_and_bounded_labels() {
        metrics();
        histogram!(HTTP_SECONDS, "route" => "/v2/catalog").record(0.002);
        counter!(HTTP_TOTAL, "route" => "/v2/catalog").increment(1);
        counter!(HTTP_FAILED_LOGINS).increment(1);
        operation_started(OperationKind::Provision, "postgres");
        operation_finished(
            OperationKind::Provision,
            "postgres",
            OperationState::Succeeded,
            4.5,
        );
        operations_open(7);
        step_retried(OperationKind::Bind, "redis");
        store_group(64);
        swept("expired_binding", 2);
        reconciled("client_unknown", 3);
        upkeep();
        let page = render();
        for line in [
            r#"chandler_http_request_seconds_bucket{route="/v2/catalog",le="0.0025"} 1"#,
            r#"chandler_operations_started_total{kind="provision",offering="postgres"} 1"#,
            r#"chandler_operations_finished_total{kind="provision",offering="postgres",outcome="succeeded"} 1"#,
            r#"chandler_operation_seconds_bucket{kind="provision",offering="postgres",outcome="succeeded",le="10"} 1"#,
            "chandler_operations_open 7",
            r#"chandler_step_retries_total{kind="bind",offering="redis"} 1"#,
            r#"chandler_store_group_writes_bucket{le="64"} 1"#,
            r#"chandler_swept_total{what="expired_binding"} 2"#,
            r#"chandler_reconcile_findings{kind="client_unknown"} 3"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        for line in page
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with("chandler_"), "{name}");
            let base = name
                .trim_end_matches("_bucket")
                .trim_end_matches("_sum")
                .trim_end_matches("_count");
            assert!(page.contains(&format!("# HELP {base} ")), "{base} has no help");
        }
    }
}
