//! CouchDB 3 in the points the mechanism depends on, after its documentation: what servers that merely speak the same
//! protocol do otherwise. It keeps documents with revisions and tombstones, knows roles, and refuses as CouchDB does.
//!
//! It runs no script: of a validation function it reads the list of writers. That the function works is shown
//! on a server that runs it (`tests/platform`).

use crate::fake::{Call, Fake};
use chandler::domain::secret::Secret;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Database {
    security: Value,
    /// `None` is a tombstone.
    documents: BTreeMap<String, (u64, Option<Value>)>,
}

/// Something done behind everybody's back.
pub type Meddle = Box<dyn FnOnce(&mut State) + Send>;

/// What the server holds and has seen.
pub struct State {
    admin: Secret,
    databases: BTreeMap<String, Database>,
    /// Whether strangers may use `_users`, and `_users/_security` can be changed.
    open_users: bool,
    /// Writes so far: method and path.
    pub writes: Vec<String>,
    /// Called once before the next write to a path that starts so, to be in its way.
    pub interfere: Option<(String, Meddle)>,
}

/// A running fake and what it holds.
pub struct FakeCouch {
    /// The server.
    pub server: Fake,
    /// What it holds.
    pub state: Arc<Mutex<State>>,
}

struct User {
    name: String,
    roles: Vec<String>,
}

type Reply = (u16, Value);

fn refuse(status: u16, error: &str, reason: &str) -> Reply {
    (status, json!({"error": error, "reason": reason}))
}

fn forbidden(reason: &str) -> Reply {
    refuse(403, "forbidden", reason)
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

impl FakeCouch {
    /// Starts one with an empty `_users`, closed as CouchDB 3 closes it unless `open_users`.
    pub fn start(admin: Secret, open_users: bool) -> Self {
        let closed = json!({"members": {"roles": ["_admin"]}, "admins": {"roles": ["_admin"]}});
        let users = Database {
            security: if open_users { json!({}) } else { closed },
            ..Database::default()
        };
        let state = Arc::new(Mutex::new(State {
            admin,
            databases: BTreeMap::from([("_users".to_owned(), users)]),
            open_users,
            writes: Vec::new(),
            interfere: None,
        }));
        let shared = state.clone();
        let server = Fake::serve(move |call| {
            let mut state = shared.lock().unwrap();
            let (status, body) = state.answer(call);
            (status, body.to_string())
        });
        Self { server, state }
    }
}

impl State {
    fn answer(&mut self, call: &Call) -> Reply {
        let user = match self.user(&call.authorization) {
            Ok(user) => user,
            Err(refused) => return refused,
        };
        if call.method != "GET" {
            self.writes.push(format!("{} {}", call.method, call.path));
            if let Some((path, interfere)) = self.interfere.take() {
                if call.path.starts_with(&path) {
                    interfere(self);
                } else {
                    self.interfere = Some((path, interfere));
                }
            }
        }
        let path = call.path.trim_start_matches('/');
        let (database, rest) = path.split_once('/').unwrap_or((path, ""));
        match (call.method.as_str(), database, rest) {
            ("GET", "_session", "") => {
                let context = json!({"name": user.name, "roles": user.roles});
                (200, json!({"ok": true, "userCtx": context}))
            }
            ("PUT", name, "") => self.create(&user, name),
            (_, name, rest) => {
                if !self.databases.contains_key(name) {
                    return refuse(404, "not_found", "Database does not exist.");
                }
                if !self.is_member(&user, name) {
                    return forbidden("You are not allowed to access this db.");
                }
                match (call.method.as_str(), rest) {
                    ("GET", "") => (200, json!({"db_name": name})),
                    ("GET", "_security") => (200, self.databases[name].security.clone()),
                    ("PUT", "_security") => self.secure(&user, name, &call.body),
                    ("GET", "_all_docs") => self.all(name, call),
                    ("GET", id) => self.read(name, id),
                    ("PUT", id) => self.write(&user, name, id, &call.body),
                    ("DELETE", id) => self.delete(&user, name, id, call.query.get("rev")),
                    _ => refuse(405, "method_not_allowed", "Only GET,PUT,DELETE allowed"),
                }
            }
        }
    }

    fn user(&self, authorization: &str) -> Result<User, Reply> {
        let decoded = authorization
            .strip_prefix("Basic ")
            .and_then(|basic| BASE64.decode(basic.as_bytes()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((name, password)) = decoded.as_deref().and_then(|both| both.split_once(':')) else {
            return Err(refuse(401, "unauthorized", "Authentication required."));
        };
        if name == self.admin.text("username") && password == self.admin.text("password") {
            let roles = vec!["_admin".to_owned()];
            return Ok(User {
                name: name.to_owned(),
                roles,
            });
        }
        let id = format!("org.couchdb.user:{name}");
        match self.databases["_users"].documents.get(&id) {
            Some((_, Some(document))) if document["derived_key"] == derived(password) => Ok(User {
                name: name.to_owned(),
                roles: texts(&document["roles"]).into_iter().map(str::to_owned).collect(),
            }),
            _ => Err(refuse(401, "unauthorized", "Name or password is incorrect.")),
        }
    }

    fn in_part(&self, user: &User, database: &str, part: &str) -> bool {
        let part = &self.databases[database].security[part];
        texts(&part["names"]).contains(&user.name.as_str())
            || texts(&part["roles"])
                .iter()
                .any(|role| user.roles.iter().any(|r| r == role))
    }

    fn is_admin(&self, user: &User, database: &str) -> bool {
        user.roles.iter().any(|role| role == "_admin") || self.in_part(user, database, "admins")
    }

    fn is_member(&self, user: &User, database: &str) -> bool {
        let members = &self.databases[database].security["members"];
        let public = texts(&members["names"]).is_empty() && texts(&members["roles"]).is_empty();
        public || self.is_admin(user, database) || self.in_part(user, database, "members")
    }

    fn create(&mut self, user: &User, name: &str) -> Reply {
        if !user.roles.iter().any(|role| role == "_admin") {
            return refuse(401, "unauthorized", "You are not a server admin.");
        }
        if self.databases.contains_key(name) {
            return refuse(
                412,
                "file_exists",
                "The database could not be created, the file already exists.",
            );
        }
        let database = Database {
            security: json!({"members": {"roles": ["_admin"]}, "admins": {"roles": ["_admin"]}}),
            ..Database::default()
        };
        self.databases.insert(name.to_owned(), database);
        (201, json!({"ok": true}))
    }

    fn secure(&mut self, user: &User, name: &str, body: &[u8]) -> Reply {
        if name == "_users" {
            return forbidden("You can't edit the security object of the user database.");
        }
        if !self.is_admin(user, name) {
            return forbidden("You are not a db or server admin.");
        }
        self.databases.get_mut(name).unwrap().security = serde_json::from_slice(body).unwrap();
        (200, json!({"ok": true}))
    }

    fn all(&self, name: &str, call: &Call) -> Reply {
        let key = |name: &str| serde_json::from_str::<String>(&call.query[name]).unwrap();
        let (start, end) = (key("startkey"), key("endkey"));
        let rows: Vec<_> = self.databases[name]
            .documents
            .range(start..=end)
            .filter(|(_, (_, document))| document.is_some())
            .map(|(id, (revision, _))| json!({"id": id, "key": id, "value": {"rev": text(*revision)}}))
            .collect();
        (200, json!({"total_rows": rows.len(), "offset": 0, "rows": rows}))
    }

    fn read(&self, name: &str, id: &str) -> Reply {
        match self.databases[name].documents.get(id) {
            Some((revision, Some(document))) => {
                let mut document = document.clone();
                document["_rev"] = json!(text(*revision));
                (200, document)
            }
            Some((_, None)) => refuse(404, "not_found", "deleted"),
            None => refuse(404, "not_found", "missing"),
        }
    }

    fn write(&mut self, user: &User, name: &str, id: &str, body: &[u8]) -> Reply {
        let mut document: Value = serde_json::from_slice(body).unwrap();
        if let Some(refused) = self.refuses(user, name, id) {
            return refused;
        }
        let (now, exists) = match self.databases[name].documents.get(id) {
            Some((revision, document)) => (*revision, document.is_some()),
            None => (0, false),
        };
        let named = document.as_object_mut().unwrap().remove("_rev");
        let fits = match &named {
            Some(revision) => *revision == json!(text(now)),
            None => !exists,
        };
        if !fits {
            return refuse(409, "conflict", "Document update conflict.");
        }
        document["_id"] = json!(id);
        if name == "_users" {
            if document["type"] != "user"
                || id != format!("org.couchdb.user:{}", document["name"].as_str().unwrap())
            {
                return forbidden("Doc id must be of the form org.couchdb.user:name");
            }
            let members = document.as_object_mut().unwrap();
            let password = members.remove("password").unwrap_or_default();
            members.insert(
                "derived_key".to_owned(),
                json!(derived(password.as_str().unwrap())),
            );
        }
        let documents = &mut self.databases.get_mut(name).unwrap().documents;
        documents.insert(id.to_owned(), (now + 1, Some(document)));
        (201, json!({"ok": true, "id": id, "rev": text(now + 1)}))
    }

    fn delete(&mut self, user: &User, name: &str, id: &str, revision: Option<&String>) -> Reply {
        if let Some(refused) = self.refuses(user, name, id) {
            return refused;
        }
        match self.databases[name].documents.get(id) {
            Some((now, Some(_))) if revision == Some(&text(*now)) => {
                let next = now + 1;
                let documents = &mut self.databases.get_mut(name).unwrap().documents;
                documents.insert(id.to_owned(), (next, None));
                (200, json!({"ok": true, "id": id, "rev": text(next)}))
            }
            Some((_, Some(_))) => refuse(409, "conflict", "Document update conflict."),
            Some((_, None)) => refuse(404, "not_found", "deleted"),
            None => refuse(404, "not_found", "missing"),
        }
    }

    /// Why this user may not write this document, if so.
    fn refuses(&self, user: &User, name: &str, id: &str) -> Option<Reply> {
        if self.is_admin(user, name) && id.starts_with("_design/") {
            return None;
        }
        if id.starts_with("_design/") {
            return Some(forbidden("You are not a db or server admin."));
        }
        let documents = &self.databases[name].documents;
        let designs = documents.iter().filter(|(id, _)| id.starts_with("_design/"));
        for (_, (_, design)) in designs {
            let function = design.as_ref().and_then(|d| d["validate_doc_update"].as_str());
            let Some((_, list)) = function.and_then(|f| f.split_once("writers = ")) else {
                continue;
            };
            let writers: Value = serde_json::from_str(list.split(';').next().unwrap()).unwrap();
            if !texts(&writers)
                .iter()
                .any(|role| user.roles.iter().any(|r| r == role))
            {
                return Some(forbidden("This binding may only read."));
            }
        }
        None
    }

    /// Takes a document away behind everybody's back.
    pub fn lose(&mut self, database: &str, id: &str) {
        let documents = &mut self.databases.get_mut(database).unwrap().documents;
        if let Some((revision, document)) = documents.get_mut(id) {
            *revision += 1;
            *document = None;
        }
    }

    /// Changes a document's revision behind everybody's back.
    pub fn touch(&mut self, database: &str, id: &str) {
        self.databases
            .get_mut(database)
            .unwrap()
            .documents
            .get_mut(id)
            .unwrap()
            .0 += 1;
    }

    /// Whether anybody may make users here.
    pub fn is_open(&self) -> bool {
        self.open_users
    }
}

fn text(revision: u64) -> String {
    format!("{revision}-abc")
}

/// Stands for the hash that CouchDB keeps.
fn derived(password: &str) -> String {
    format!("hash of {password}")
}
