//! The figures and the table they end in.

use std::fmt::Write as _;

/// Which way a limit goes.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// The figure must reach it.
    AtLeast(f64),
    /// The figure must not pass it.
    AtMost(f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Line {
    /// What was measured.
    what: String,
    /// What was found, in words.
    found: String,
    figure: f64,
    unit: &'static str,
    limit: Limit,
}

/// All lines.
#[derive(Debug, Default)]
pub struct Report(Vec<Line>);

impl Report {
    /// Adds a line and prints it, so that a long run tells how far it is.
    pub fn add(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        figure: f64,
        unit: &'static str,
        limit: Limit,
    ) {
        let line = Line {
            what: what.into(),
            found: found.into(),
            figure,
            unit,
            limit,
        };
        eprintln!("  {}: {} -> {}", line.what, line.found, line.shown());
        self.0.push(line);
    }

    /// The table in Markdown, and how many limits were met.
    pub fn table(&self) -> String {
        let mut text = String::from("| measured | found | figure | limit | |\n|---|---|---:|---:|---|\n");
        for line in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                line.what,
                line.found,
                line.shown(),
                line.limit_shown(),
                if line.met() { "pass" } else { "**falls short**" }
            );
        }
        let met = self.0.iter().filter(|line| line.met()).count();
        let _ = writeln!(text, "\n{met} of {} limits met.", self.0.len());
        text
    }
}

impl Line {
    fn met(&self) -> bool {
        match self.limit {
            Limit::AtLeast(limit) => self.figure >= limit,
            Limit::AtMost(limit) => self.figure <= limit,
        }
    }

    fn shown(&self) -> String {
        format!("{:.2}{}", self.figure, self.unit)
    }

    fn limit_shown(&self) -> String {
        match self.limit {
            Limit::AtLeast(limit) => format!("≥ {limit}{}", self.unit),
            Limit::AtMost(limit) => format!("≤ {limit}{}", self.unit),
        }
    }
}

/// The middle one; of two middle ones the mean.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
