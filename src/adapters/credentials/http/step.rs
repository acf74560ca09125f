//! One request as data, and how it becomes bytes.
//!
//! What must stay true: the body is taken apart and filled leaf by leaf, so no value changes its shape; a value in the
//! path is percent-encoded, never empty and never a step upwards; secrets go into headers and bodies only.

use crate::adapters::credentials::holes::{self, Filling, Known, Part, Stage};
use crate::ports::{PortError, PortResult};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

/// What stays as it is in a path: RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Names whose values must not get into a path, which servers write into their logs.
const NOT_IN_PATHS: [&str; 2] = ["password", "admin_password"];

/// Headers that belong to the connection.
const NOT_OURS: [&str; 8] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

const METHODS: [&str; 5] = ["GET", "PUT", "POST", "PATCH", "DELETE"];

const MEMBERS: [&str; 15] = [
    "method", "path", "headers", "body", "as", "roles", "if", "unless", "ok", "done_on", "again_on",
    "capture", "expect", "users", "prefix",
];

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Admin,
    User,
    Nobody,
}

/// One request of a list.
#[derive(Debug)]
pub(super) struct Step {
    /// Such as `issue[2]`, for the log.
    pub place: String,
    pub method: &'static str,
    path: Vec<Part>,
    headers: Vec<(String, Vec<Part>)>,
    body: Option<Body>,
    pub who: Who,
    /// Only for these roles; empty for all.
    pub roles: Vec<String>,
    /// Only when this was captured.
    pub only_if: Option<String>,
    /// Only when this was not.
    pub unless: Option<String>,
    /// Statuses of success; empty for all from 200 to 299.
    pub ok: Vec<u16>,
    /// Statuses that end the list as success.
    pub done_on: Vec<u16>,
    /// Statuses with which the list is begun again.
    pub again_on: Vec<u16>,
    pub capture: Vec<(String, Pointer)>,
    pub expect: Vec<(Pointer, Body)>,
    /// Where names of users are in the answer.
    pub users: Option<Pointer>,
    /// What stands before each.
    pub prefix: String,
}

impl Step {
    /// Reads a step; every error at once. `captured` are names that earlier steps of the list give.
    pub fn parse(
        place: String,
        item: &Value,
        stage: Stage,
        values: &Map<String, Value>,
        captured: &[String],
        errors: &mut Vec<String>,
    ) -> Option<Self> {
        let before = errors.len();
        let Value::Object(members) = item else {
            errors.push(format!("{place}: must be a map with `method` and `path`"));
            return None;
        };
        holes::unknown(members, &MEMBERS, &place, errors);
        let mut more: Vec<&str> = captured.iter().map(String::as_str).collect();
        more.extend(["admin_username", "admin_password"]);
        let known = Known {
            stage,
            values,
            more: &more,
        };
        let mut read = Reading {
            place: &place,
            members,
            known: &known,
            errors,
        };
        let method = read.method();
        let path = read.path();
        let headers = read.headers();
        let body = members.get("body").and_then(|body| read.body("body", body));
        let who = read.who(stage);
        let (only_if, unless) = (read.captured("if", captured), read.captured("unless", captured));
        let (ok, done_on, again_on) = (
            read.statuses("ok"),
            read.statuses("done_on"),
            read.statuses("again_on"),
        );
        let capture = read.capture();
        let expect = read.expect();
        let (users, prefix) = read.users(stage);
        let roles = holes::roles(members, stage, &place, errors);
        (errors.len() == before).then_some(Self {
            place,
            method,
            path,
            headers,
            body,
            who,
            roles,
            only_if,
            unless,
            ok,
            done_on,
            again_on,
            capture,
            expect,
            users,
            prefix,
        })
    }

    /// Whether a hole of this name is anywhere in the request.
    pub fn mentions(&self, name: &str) -> bool {
        let in_parts = |parts: &[Part]| parts.iter().any(|p| matches!(p, Part::Hole(h) if h.name == name));
        in_parts(&self.path)
            || self.headers.iter().any(|(_, parts)| in_parts(parts))
            || self.body.as_ref().is_some_and(|body| body.mentions(name))
    }

    /// Path and query with every hole filled.
    pub fn path(&self, filling: &Filling) -> PortResult<String> {
        let mut path = String::new();
        for part in &self.path {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Hole(hole) => {
                    let value = filling.get(&hole.name).and_then(holes::as_text);
                    // An empty one would name all users instead of one.
                    let value = value
                        .filter(|value| !value.is_empty() && !value.chars().any(char::is_control))
                        .ok_or_else(|| unfit(&hole.name, "a part of an address"))?;
                    path.extend(utf8_percent_encode(&value, ENCODED));
                }
            }
        }
        let end = path.find('?').unwrap_or(path.len());
        let upwards = |segment: &str| {
            let segment = segment.replace("%2e", ".").replace("%2E", ".");
            segment == "." || segment == ".."
        };
        if path[..end].split('/').any(upwards) {
            return Err(PortError::invalid(
                "A value of this binding would lead to another place on the server.",
            ));
        }
        Ok(path)
    }

    /// Names and values of the step's own headers.
    pub fn headers(&self, filling: &Filling) -> PortResult<Vec<(String, String)>> {
        let fill = |(name, parts): &(String, Vec<Part>)| {
            let value = text(parts, filling)?.ok_or_else(|| unfit(name, "a header"))?;
            if !value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
                return Err(unfit(name, "a header"));
            }
            Ok((name.clone(), value))
        };
        self.headers.iter().map(fill).collect()
    }

    /// The body, none for none.
    pub fn body(&self, filling: &Filling) -> PortResult<Option<Value>> {
        self.body.as_ref().map_or(Ok(None), |body| body.fill(filling))
    }
}

/// The value is not told: it may be secret.
fn unfit(name: &str, what: &str) -> PortError {
    PortError::invalid(format!("What `{name}` is here cannot be {what}."))
}

/// A text with every hole filled; none when one has no value.
fn text(parts: &[Part], filling: &Filling) -> PortResult<Option<String>> {
    let mut all = String::new();
    for part in parts {
        match part {
            Part::Text(text) => all.push_str(text),
            Part::Hole(hole) => match filling.get(&hole.name) {
                None => return Ok(None),
                Some(value) => {
                    all.push_str(&holes::as_text(value).ok_or_else(|| unfit(&hole.name, "part of a text"))?);
                }
            },
        }
    }
    Ok(Some(all))
}

/// JSON whose texts may hold holes.
#[derive(Debug)]
pub(super) enum Body {
    Fixed(Value),
    Text(Vec<Part>),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Body {
    fn parse(value: &Value, known: &Known<'_>) -> Result<Self, Vec<String>> {
        match value {
            Value::String(text) => parts(text, known, &[]).map(Self::Text),
            Value::Array(items) => {
                let parsed: Vec<_> = items.iter().map(|item| Self::parse(item, known)).collect();
                gathered(parsed).map(Self::List)
            }
            Value::Object(members) => {
                let member = |(name, item): (&String, &Value)| {
                    Self::parse(item, known).map(|item| (name.clone(), item))
                };
                gathered(members.iter().map(member).collect()).map(Self::Map)
            }
            other => Ok(Self::Fixed(other.clone())),
        }
    }

    fn mentions(&self, name: &str) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Text(parts) => parts.iter().any(|p| matches!(p, Part::Hole(h) if h.name == name)),
            Self::List(items) => items.iter().any(|item| item.mentions(name)),
            Self::Map(members) => members.iter().any(|(_, item)| item.mentions(name)),
        }
    }

    /// Fills it. A text that is one hole becomes that value, whatever its type; what has no value is left out.
    pub fn fill(&self, filling: &Filling) -> PortResult<Option<Value>> {
        Ok(match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Text(parts) => match parts.as_slice() {
                [Part::Hole(hole)] => filling.get(&hole.name).cloned(),
                parts => text(parts, filling)?.map(Value::String),
            },
            Self::List(items) => {
                let filled: PortResult<Vec<_>> = items.iter().map(|item| item.fill(filling)).collect();
                Some(filled?.into_iter().flatten().collect())
            }
            Self::Map(members) => {
                let mut all = Map::new();
                for (name, item) in members {
                    if let Some(value) = item.fill(filling)? {
                        all.insert(name.clone(), value);
                    }
                }
                Some(Value::Object(all))
            }
        })
    }
}

fn gathered<T>(parsed: Vec<Result<T, Vec<String>>>) -> Result<Vec<T>, Vec<String>> {
    let mut errors = Vec::new();
    let mut all = Vec::new();
    for one in parsed {
        match one {
            Ok(one) => all.push(one),
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

/// Takes a text apart and looks whether its holes can be filled here.
fn parts(text: &str, known: &Known<'_>, not_here: &[&str]) -> Result<Vec<Part>, Vec<String>> {
    let parts = holes::split(text).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    for part in &parts {
        let Part::Hole(hole) = part else { continue };
        errors.extend(known.check(&hole.name).err());
        if hole.kind.is_some() {
            errors.push(format!(
                "`{{{}}}` takes no kind here: its place decides how it is written",
                hole.name
            ));
        }
        if not_here.contains(&hole.name.as_str()) {
            errors.push(format!(
                "`{{{}}}` must not stand in an address, which servers log",
                hole.name
            ));
        }
    }
    if errors.is_empty() { Ok(parts) } else { Err(errors) }
}

/// A place in a JSON answer, as RFC 6901 writes it; `*` stands for every item of a list or member of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self(Vec::new()));
        }
        let token = |token: &str| token.replace("~1", "/").replace("~0", "~");
        text.strip_prefix('/')
            .map(|rest| Self(rest.split('/').map(token).collect()))
    }

    /// The value there.
    pub fn one<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        let step = |value: &'a Value, token: &String| match value {
            Value::Object(members) => members.get(token),
            Value::Array(items) => token.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => None,
        };
        self.0
            .iter()
            .try_fold(value, step)
            .filter(|value| !value.is_null())
    }

    /// The texts at all places it stands for; a `*` at the end of it stands for the names of a map's members.
    pub fn all(&self, value: &Value) -> Vec<String> {
        let mut found = vec![value];
        for (i, token) in self.0.iter().enumerate() {
            let mut next = Vec::new();
            for value in found {
                match (value, token.as_str()) {
                    (Value::Object(members), "*") if i + 1 == self.0.len() => {
                        return members.keys().cloned().collect();
                    }
                    (Value::Object(members), "*") => next.extend(members.values()),
                    (Value::Array(items), "*") => next.extend(items),
                    (value, _) => next.extend(Self(vec![token.clone()]).one(value)),
                }
            }
            found = next;
        }
        found
            .into_iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }
}

/// A step while it is read.
struct Reading<'a> {
    place: &'a str,
    members: &'a Map<String, Value>,
    known: &'a Known<'a>,
    errors: &'a mut Vec<String>,
}

impl Reading<'_> {
    fn wrong(&mut self, member: &str, message: impl std::fmt::Display) {
        self.errors.push(format!("{}.{member}: {message}", self.place));
    }

    fn parts(&mut self, member: &str, text: &str, not_here: &[&str]) -> Vec<Part> {
        parts(text, self.known, not_here).unwrap_or_else(|errors| {
            for error in errors {
                self.wrong(member, error);
            }
            Vec::new()
        })
    }

    fn method(&mut self) -> &'static str {
        let given = self
            .members
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or_default();
        METHODS
            .into_iter()
            .find(|method| *method == given)
            .unwrap_or_else(|| {
                self.wrong("method", format!("must be one of {}", METHODS.join(", ")));
                METHODS[0]
            })
    }

    fn path(&mut self) -> Vec<Part> {
        let text = self
            .members
            .get("path")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let fixed = |c: char| c.is_ascii_graphic() && !"\\#".contains(c);
        if !text.starts_with('/') || text.starts_with("//") || !text.chars().all(fixed) {
            self.wrong(
                "path",
                "must be a path that starts with one `/`, percent-encoded where it must be",
            );
            return Vec::new();
        }
        self.parts("path", text, &NOT_IN_PATHS)
    }

    fn headers(&mut self) -> Vec<(String, Vec<Part>)> {
        let given = match self.members.get("headers") {
            None => return Vec::new(),
            Some(Value::Object(given)) => given,
            Some(_) => {
                self.wrong("headers", "must be a map of names and texts");
                return Vec::new();
            }
        };
        let mut headers = Vec::new();
        for (name, value) in given {
            let member = format!("headers.{name}");
            let right = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            match value {
                Value::String(text) if right && !NOT_OURS.contains(&name.as_str()) => {
                    headers.push((name.clone(), self.parts(&member, text, &[])));
                }
                Value::String(_) => {
                    self.wrong(
                        &member,
                        "must be a header's name in lower case, and not one of the connection's own",
                    );
                }
                _ => self.wrong(&member, "must be a text"),
            }
        }
        headers
    }

    fn body(&mut self, member: &str, body: &Value) -> Option<Body> {
        match Body::parse(body, self.known) {
            Ok(body) => Some(body),
            Err(errors) => {
                for error in errors {
                    self.wrong(member, error);
                }
                None
            }
        }
    }

    fn who(&mut self, stage: Stage) -> Who {
        let knows_user = matches!(stage, Stage::Issue | Stage::Verify);
        match self.members.get("as").map(|who| who.as_str().unwrap_or_default()) {
            None if stage == Stage::Verify => Who::User,
            None | Some("admin") => Who::Admin,
            Some("nobody") => Who::Nobody,
            Some("user") if knows_user => Who::User,
            Some("user") => {
                self.wrong(
                    "as",
                    format!("the user's password is not known in `{}`", stage.word()),
                );
                Who::Admin
            }
            Some(_) => {
                self.wrong("as", "must be admin, user or nobody");
                Who::Admin
            }
        }
    }

    fn captured(&mut self, member: &str, captured: &[String]) -> Option<String> {
        let name = self.members.get(member)?.as_str().unwrap_or_default().to_owned();
        if !captured.contains(&name) {
            self.wrong(member, "must be the name of something an earlier step captures");
        }
        Some(name)
    }

    fn statuses(&mut self, member: &str) -> Vec<u16> {
        let Some(given) = self.members.get(member) else {
            return Vec::new();
        };
        let number = |item: &Value| {
            item.as_u64()
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| (200..500).contains(n))
        };
        let list: Vec<u16> = given
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(number)
            .collect();
        if list.is_empty() || given.as_array().is_none_or(|items| items.len() != list.len()) {
            self.wrong(member, "must be a list of statuses from 200 to 499");
        }
        list
    }

    fn pointer(&mut self, member: &str, text: Option<&str>, star: bool) -> Option<Pointer> {
        let pointer = text
            .and_then(Pointer::parse)
            .filter(|pointer| star || !pointer.0.iter().any(|token| token == "*"));
        if pointer.is_none() {
            let more = if star { " (`*` for all)" } else { "" };
            self.wrong(
                member,
                format!("must be a place in the answer such as `/rows/0/id`{more}"),
            );
        }
        pointer
    }

    fn map(&mut self, member: &str) -> Vec<(String, Value)> {
        match self.members.get(member) {
            None => Vec::new(),
            Some(Value::Object(given)) => given.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            Some(_) => {
                self.wrong(member, "must be a map");
                Vec::new()
            }
        }
    }

    fn capture(&mut self) -> Vec<(String, Pointer)> {
        let mut all = Vec::new();
        for (name, place) in self.map("capture") {
            let member = format!("capture.{name}");
            // A name that is there already would mean two things.
            if !holes::is_free(&name, self.known.values) {
                self.wrong(
                    &member,
                    "must be a name that means nothing else: lower-case letters, digits and `_`",
                );
            } else if let Some(pointer) = self.pointer(&member, place.as_str(), false) {
                all.push((name, pointer));
            }
        }
        all
    }

    fn expect(&mut self) -> Vec<(Pointer, Body)> {
        let mut all = Vec::new();
        for (place, wanted) in self.map("expect") {
            let member = format!("expect.{place}");
            let pointer = self.pointer(&member, Some(&place), false);
            if let (Some(pointer), Some(wanted)) = (pointer, self.body(&member, &wanted)) {
                all.push((pointer, wanted));
            }
        }
        all
    }

    fn users(&mut self, stage: Stage) -> (Option<Pointer>, String) {
        for member in ["users", "prefix"] {
            if self.members.contains_key(member) && stage != Stage::List {
                self.wrong(member, "belongs into `list`");
            }
        }
        let users = match self.members.get("users") {
            None => None,
            Some(place) => self.pointer("users", place.as_str(), true),
        };
        let prefix = match self.members.get("prefix") {
            None => String::new(),
            Some(Value::String(prefix)) => prefix.clone(),
            Some(_) => {
                self.wrong("prefix", "must be a text");
                String::new()
            }
        };
        (users, prefix)
    }
}
