//! SQL with holes. The only way a value gets into a statement: quoted here, at a place that was looked at first.
//!
//! What must stay true: a hole stands where the server reads code, never within quotes or a comment and never right
//! beside something that would change how its quotes are read (`E`, `U&`, another quote); so whatever the value, it is
//! one name, one literal or one number. Session settings that change how quotes are read are pinned by `session`.

use crate::adapters::credentials::holes::{self, Filling, Known, Part};
use crate::ports::{PortError, PortResult};
use serde_json::Value;

/// What kind of server reads the statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::adapters::credentials) enum Dialect {
    /// PostgreSQL and servers that speak as it does.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

/// How a value is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A name: `"app"`.
    Identifier,
    /// A text: `'app'`; NULL for what is not there.
    Literal,
    /// A number as it stands; NULL for what is not there.
    Number,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(String, Kind),
}

/// A statement whose holes are at safe places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sql(Vec<Piece>);

impl Sql {
    /// Takes a text apart and looks where its holes are; every error at once.
    pub fn parse(text: &str, dialect: Dialect, known: &Known<'_>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut pieces = Vec::new();
        for part in holes::split(text).map_err(|error| vec![error])? {
            match part {
                Part::Text(text) => pieces.push(Piece::Text(text)),
                Part::Hole(hole) => {
                    errors.extend(known.check(&hole.name).err());
                    let kind = match hole.kind.as_deref() {
                        Some("identifier") => Kind::Identifier,
                        Some("literal") => Kind::Literal,
                        Some("number") => Kind::Number,
                        _ => {
                            let name = &hole.name;
                            errors.push(format!(
                                "`{{{name}}}` must say how it is quoted: `{{{name}:identifier}}`, \
                                 `{{{name}:literal}}` or `{{{name}:number}}`"
                            ));
                            continue;
                        }
                    };
                    pieces.push(Piece::Hole(hole.name, kind));
                }
            }
        }
        let sql = Self(pieces);
        if sql
            .0
            .iter()
            .all(|p| matches!(p, Piece::Text(t) if t.trim().is_empty()))
        {
            errors.push("holds no statement".to_owned());
        }
        errors.extend(sql.read(dialect).err());
        if errors.is_empty() { Ok(sql) } else { Err(errors) }
    }

    /// Whether a hole of this name is in it.
    pub fn mentions(&self, name: &str) -> bool {
        self.0.iter().any(|p| matches!(p, Piece::Hole(n, _) if n == name))
    }

    /// Reads the statement as the server would, and looks at each hole's place.
    fn read(&self, dialect: Dialect) -> Result<(), String> {
        let mut signs = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => signs.extend(text.chars().map(Sign::Char)),
                Piece::Hole(name, _) => signs.push(Sign::Hole(name)),
            }
        }
        let mut reader = Reader {
            signs,
            at: 0,
            dialect,
        };
        reader.code()
    }

    /// The statement with every hole filled.
    pub fn fill(&self, dialect: Dialect, filling: &Filling) -> PortResult<String> {
        let mut sql = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Hole(name, kind) => {
                    let value = filling.get(name);
                    let put = match kind {
                        Kind::Identifier => value.and_then(|v| identifier(v, dialect)),
                        Kind::Literal => value.map_or(Some("NULL".to_owned()), |v| literal(v, dialect)),
                        Kind::Number => value.map_or(Some("NULL".to_owned()), number),
                    };
                    sql.push_str(&put.ok_or_else(|| unfit(name, *kind))?);
                }
            }
        }
        Ok(sql)
    }
}

/// The value is not told: it may be secret.
fn unfit(name: &str, kind: Kind) -> PortError {
    let what = match kind {
        Kind::Identifier => "a name in the database (1 to 63 bytes without control characters)",
        Kind::Literal => "a text in a statement",
        Kind::Number => "a number in a statement",
    };
    PortError::invalid(format!("What `{name}` is here cannot be {what}."))
}

/// A name in quotes. The server would cut a longer one, and then it could be somebody else's.
fn identifier(value: &Value, dialect: Dialect) -> Option<String> {
    let text = value.as_str()?;
    if text.is_empty() || text.len() > 63 || text.ends_with(' ') || text.chars().any(char::is_control) {
        return None;
    }
    Some(match dialect {
        Dialect::Postgres => format!("\"{}\"", text.replace('"', "\"\"")),
        Dialect::MySql => format!("`{}`", text.replace('`', "``")),
    })
}

/// A text in quotes that means the same whatever the server makes of backslashes.
fn literal(value: &Value, dialect: Dialect) -> Option<String> {
    let text = holes::as_text(value)?;
    if text.contains('\0') {
        return None;
    }
    let quoted = text.replace('\'', "''").replace('\\', "\\\\");
    let escapes = dialect == Dialect::Postgres && text.contains('\\');
    Some(format!("{}'{quoted}'", if escapes { "E" } else { "" }))
}

/// A number; a negative one in brackets, as two minus signs begin a comment.
fn number(value: &Value) -> Option<String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        // What a query answered.
        Value::String(text) if text.parse::<i64>().is_ok() => text.trim_start_matches('+').to_owned(),
        _ => return None,
    };
    Some(if text.starts_with('-') {
        format!("({text})")
    } else {
        text
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign<'a> {
    Char(char),
    Hole(&'a str),
}

/// Reads a statement just well enough to know what is code, what is quoted and what is a comment.
struct Reader<'a> {
    signs: Vec<Sign<'a>>,
    at: usize,
    dialect: Dialect,
}

impl Reader<'_> {
    fn char_at(&self, at: usize) -> Option<char> {
        match self.signs.get(at) {
            Some(Sign::Char(c)) => Some(*c),
            _ => None,
        }
    }

    fn before(&self) -> Option<char> {
        self.at.checked_sub(1).and_then(|at| self.char_at(at))
    }

    fn next(&self) -> Option<char> {
        self.char_at(self.at + 1)
    }

    /// Reads code to the end.
    fn code(&mut self) -> Result<(), String> {
        let mysql = self.dialect == Dialect::MySql;
        while let Some(&sign) = self.signs.get(self.at) {
            let Sign::Char(c) = sign else {
                self.place()?;
                self.at += 1;
                continue;
            };
            match c {
                '\'' => {
                    let escapes = mysql || self.is_prefix(['e', 'E']);
                    self.quoted(c, escapes)?;
                }
                '"' => self.quoted(c, mysql)?,
                '`' if mysql => self.quoted(c, false)?,
                '-' if self.next() == Some('-') => {
                    if mysql && !self.char_at(self.at + 2).is_none_or(char::is_whitespace) {
                        return Err(
                            "`--` without a blank after it is no comment here; write `- -`".to_owned()
                        );
                    }
                    self.line()?;
                }
                '#' if mysql => self.line()?,
                '/' if self.next() == Some('*') => self.block()?,
                '$' if !mysql => self.dollar()?,
                '\0' => return Err("holds a character that no server takes".to_owned()),
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    /// Whether the letter before the quote here is a prefix of it and not the end of a word.
    fn is_prefix(&self, letters: [char; 2]) -> bool {
        self.before().is_some_and(|c| letters.contains(&c))
            && !self
                .at
                .checked_sub(2)
                .and_then(|at| self.char_at(at))
                .is_some_and(is_word)
    }

    /// The place of the hole here.
    fn place(&self) -> Result<(), String> {
        let Some(Sign::Hole(name)) = self.signs.get(self.at) else {
            return Ok(());
        };
        let sticks = |sign: Option<&Sign<'_>>| match sign {
            None => false,
            Some(Sign::Hole(_)) => true,
            Some(Sign::Char(c)) => is_word(*c) || "'\"`\\&".contains(*c),
        };
        let before = self.at.checked_sub(1).and_then(|at| self.signs.get(at));
        if sticks(before) || sticks(self.signs.get(self.at + 1)) {
            return Err(format!(
                "`{{{name}}}` stands right beside a letter, a quote or another hole; put a blank between, \
                 or make one value of both in `values`"
            ));
        }
        Ok(())
    }

    /// Something in which nothing may be put.
    fn closed(&self, what: &str) -> Result<char, String> {
        match self.signs.get(self.at) {
            Some(Sign::Char(c)) => Ok(*c),
            Some(Sign::Hole(name)) => Err(format!(
                "`{{{name}}}` stands within {what}, which its value could end; a hole brings its own quotes"
            )),
            None => Err(format!("{what} is not closed")),
        }
    }

    fn quoted(&mut self, quote: char, escapes: bool) -> Result<(), String> {
        self.at += 1;
        loop {
            let c = self.closed("a quoted text")?;
            self.at += 1;
            if c == '\\' && escapes {
                self.closed("a quoted text")?;
                self.at += 1;
            } else if c == quote {
                if self.char_at(self.at) != Some(quote) {
                    return Ok(());
                }
                self.at += 1;
            }
        }
    }

    fn line(&mut self) -> Result<(), String> {
        while self.at < self.signs.len() {
            let c = self.closed("a comment")?;
            self.at += 1;
            // One of the two servers ends the line at a carriage return and the other does not.
            if c == '\n' {
                return Ok(());
            }
            if c == '\r' && self.char_at(self.at) != Some('\n') {
                return Err("a comment holds a carriage return".to_owned());
            }
        }
        Ok(())
    }

    fn block(&mut self) -> Result<(), String> {
        let mysql = self.dialect == Dialect::MySql;
        let first = (self.char_at(self.at + 2), self.char_at(self.at + 3));
        if mysql && matches!(first, (Some('!'), _) | (Some('M'), Some('!'))) {
            return Err("a comment that the server runs (`/*!`) cannot be used".to_owned());
        }
        self.at += 2;
        let mut depth = 1;
        while depth > 0 {
            let c = self.closed("a comment")?;
            match (c, self.next()) {
                ('*', Some('/')) => {
                    depth -= 1;
                    self.at += 2;
                }
                ('/', Some('*')) if mysql => return Err("a comment holds another one".to_owned()),
                ('/', Some('*')) => {
                    depth += 1;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    /// `$tag$ … $tag$`, or just a dollar.
    fn dollar(&mut self) -> Result<(), String> {
        let start = self.at;
        let mut end = start + 1;
        while self.char_at(end).is_some_and(|c| is_word(c) && c != '$') {
            end += 1;
        }
        let opens = self.char_at(end) == Some('$')
            && !self.before().is_some_and(is_word)
            && !self.char_at(start + 1).is_some_and(|c| c.is_ascii_digit());
        if !opens {
            self.at += 1;
            return Ok(());
        }
        let tag = self.signs[start..=end].to_vec();
        self.at = end + 1;
        while !self.signs[self.at.min(self.signs.len())..].starts_with(&tag) {
            self.closed("a text in dollars")?;
            self.at += 1;
        }
        self.at += tag.len();
        Ok(())
    }
}

/// Whether a character belongs to a word or a number.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::adapters::credentials::holes::Stage;
    use crate::domain::instance::Endpoint;
    use crate::domain::secret::Secret;
    use crate::ports::Target;
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn parse(text: &str, dialect: Dialect) -> Result<Sql, Vec<String>> {
        let values = json!({"a": "x", "b": "y", "n": 1});
        let known = Known {
            stage: Stage::Issue,
            values: values.as_object().unwrap(),
            more: &[],
        };
        Sql::parse(text, dialect, &known)
    }

    fn filling(values: &Value) -> Filling {
        let endpoint = Endpoint {
            name: "client".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        let target = Target {
            iid: "i".repeat(26),
            endpoints: Vec::new(),
            endpoint,
            settings: Map::new(),
            admin: Secret::default(),
            revoked: Vec::new(),
        };
        Filling::instance(&target, values.as_object().unwrap())
    }

    fn filled(text: &str, dialect: Dialect, values: &Value) -> Option<String> {
        parse(text, dialect).unwrap().fill(dialect, &filling(values)).ok()
    }

    #[test]
    fn values_are_quoted_for_their_place() {
        use Dialect::{MySql, Postgres};
        for (text, dialect, values, sql) in [
            (
                "SELECT {a:literal}",
                Postgres,
                json!({"a": "x"}),
                Some("SELECT 'x'"),
            ),
            (
                "SELECT {a:literal}",
                Postgres,
                json!({"a": "it's"}),
                Some("SELECT 'it''s'"),
            ),
            (
                "SELECT {a:literal}",
                Postgres,
                json!({"a": "\\' --"}),
                Some("SELECT E'\\\\'' --'"),
            ),
            (
                "SELECT {a:literal}",
                MySql,
                json!({"a": "\\' --"}),
                Some("SELECT '\\\\'' --'"),
            ),
            (
                "SELECT {a:literal}",
                Postgres,
                json!({"a": 5}),
                Some("SELECT '5'"),
            ),
            ("SELECT {a:literal}", Postgres, json!({}), Some("SELECT NULL")),
            ("SELECT {a:literal}", Postgres, json!({"a": "a\0b"}), None),
            ("SELECT {a:literal}", Postgres, json!({"a": [1]}), None),
            (
                "DROP ROLE {a:identifier}",
                Postgres,
                json!({"a": "x\"; y"}),
                Some("DROP ROLE \"x\"\"; y\""),
            ),
            (
                "DROP USER {a:identifier}@'%'",
                MySql,
                json!({"a": "x`y"}),
                Some("DROP USER `x``y`@'%'"),
            ),
            ("DROP ROLE {a:identifier}", Postgres, json!({"a": ""}), None),
            ("DROP ROLE {a:identifier}", Postgres, json!({"a": 5}), None),
            (
                "DROP ROLE {a:identifier}",
                Postgres,
                json!({"a": "x".repeat(64)}),
                None,
            ),
            ("DROP ROLE {a:identifier}", Postgres, json!({}), None),
            ("LIMIT {n:number}", Postgres, json!({"n": 5}), Some("LIMIT 5")),
            (
                "SELECT 1-{n:number}",
                Postgres,
                json!({"n": -5}),
                Some("SELECT 1-(-5)"),
            ),
            ("KILL {n:number}", MySql, json!({"n": "17"}), Some("KILL 17")),
            ("LIMIT {n:number}", Postgres, json!({"n": "1; DROP"}), None),
            ("LIMIT {n:number}", Postgres, json!({"n": true}), None),
            (
                "SELECT {a:literal}::text[], '{{}}'",
                Postgres,
                json!({"a": "x"}),
                Some("SELECT 'x'::text[], '{}'"),
            ),
            (
                "{a:identifier}.{b:identifier}",
                Postgres,
                json!({"a": "x", "b": "y"}),
                Some("\"x\".\"y\""),
            ),
        ] {
            assert_eq!(filled(text, dialect, &values).as_deref(), sql, "{text} {values}");
        }
    }

    #[test]
    fn holes_stand_only_where_code_is() {
        use Dialect::{MySql, Postgres};
        for (text, dialect) in [
            ("SELECT {a:literal}", Postgres),
            ("SELECT 'it''s', \"q\"\"q\", {a:literal}", Postgres),
            ("SELECT E'\\'', {a:literal}", Postgres),
            ("SELECT name'\\', {a:literal}", Postgres),
            (
                "SELECT $1, {a:literal}, $$ ' $$, $x$ $$ ' $x$, {b:literal}",
                Postgres,
            ),
            ("-- it's\nSELECT {a:literal}", Postgres),
            ("/* it's /* nested */ */ SELECT {a:literal}", Postgres),
            ("SELECT `it's`, '\\'', \"\\\"'\", {a:literal} # it's", MySql),
            ("SELECT 1 -- it's\n, {a:literal}", MySql),
            ("SELECT ({a:literal}), f({b:literal},{a:literal});", Postgres),
        ] {
            assert!(parse(text, dialect).is_ok(), "{text}: {:?}", parse(text, dialect));
        }
        for (text, dialect) in [
            ("SELECT '{a:literal}'", Postgres),
            ("SELECT \"{a:identifier}\"", Postgres),
            ("SELECT 'it''s {a:literal}'", Postgres),
            ("SELECT '\\', {a:literal}'", MySql),
            ("SELECT E'\\', {a:literal}'", Postgres),
            ("SELECT `{a:identifier}`", MySql),
            ("DO $do$ BEGIN DROP ROLE {a:identifier}; END $do$", Postgres),
            ("SELECT 1 -- {a:literal}", Postgres),
            ("SELECT 1 # {a:literal}", MySql),
            ("SELECT /* {a:literal} */ 1", Postgres),
            ("SELECT E{a:literal}", Postgres),
            ("SELECT U&{a:literal}", Postgres),
            ("SELECT a{a:literal}", Postgres),
            ("SELECT {a:literal}a", Postgres),
            ("SELECT {a:literal}'b'", Postgres),
            ("SELECT {a:literal}{b:literal}", Postgres),
            ("SELECT 1{n:number}", Postgres),
            ("SELECT ä{a:literal}", Postgres),
            ("SELECT 'open", Postgres),
            ("SELECT /* open", Postgres),
            ("SELECT $do$ open", Postgres),
            ("SELECT 5--'\n{a:literal}", MySql),
            ("SELECT /*! {a:literal} */", MySql),
            ("SELECT /*!50000 1 */", MySql),
            ("SELECT 1 -- x\r{a:literal}", Postgres),
            ("SELECT {a}", Postgres),
            ("SELECT {a:text}", Postgres),
            ("SELECT {nope:literal}", Postgres),
            ("  ", Postgres),
        ] {
            assert!(parse(text, dialect).is_err(), "{text}");
        }
    }

    #[test]
    fn every_error_is_told_at_once() {
        let errors = parse("SELECT {nope:literal}, {a}, '{b:literal}'", Dialect::Postgres).unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
    }

    proptest! {
        /// Whatever the values are, a filled statement read again is the same number of words, and closed.
        #[test]
        fn no_value_gets_out_of_its_quotes(a in "\\PC{0,20}|['\"\\\\`$\\-/*#;{}]{0,12}", b in "['\"\\\\`$a ]{1,8}[a-z]") {
            for dialect in [Dialect::Postgres, Dialect::MySql] {
                let text = "SELECT {a:literal} , {b:identifier} , {a:literal} ; -- end";
                let Some(sql) = filled(text, dialect, &json!({"a": a, "b": b})) else { continue };
                let signs: Vec<Sign<'_>> = sql.chars().map(Sign::Char).collect();
                // Cutting out what is quoted leaves the fixed text alone.
                let mut reader = Reader { signs: signs.clone(), at: 0, dialect };
                let mut code = String::new();
                while reader.at < reader.signs.len() {
                    let from = reader.at;
                    let one = Reader { signs: signs[from..].to_vec(), at: 0, dialect };
                    let quote = one.char_at(0).unwrap();
                    if "'\"`".contains(quote) && !(quote == '`' && dialect == Dialect::Postgres) {
                        let escapes = quote != '`' && (dialect == Dialect::MySql || reader.is_prefix(['E', 'e']));
                        let escapes = escapes && !(quote == '"' && dialect == Dialect::Postgres);
                        reader.quoted(quote, escapes).unwrap();
                        code.push('?');
                    } else {
                        code.push(quote);
                        reader.at += 1;
                    }
                }
                let code = code.replace("E?", "?");
                prop_assert_eq!(code, "SELECT ? , ? , ? ; -- end");
            }
        }
    }
}
