//! `${…}` leaves holding one CEL expression each, filled after parsing (design §4).
//!
//! The document is parsed first and filled afterwards, so no parameter can change its shape; and
//! a value embedded in a larger text may hold no control character, so no parameter can add a
//! line to a configuration file either. What an error says never holds a value from the scope,
//! because any of them may be secret.

mod functions;
mod leaf;

use cel::{Context, Env, ExecutionError, Program};
use leaf::Part;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// Names an expression may use: top-level name → value.
pub type Scope = Map<String, Value>;

/// Longest expression in characters.
pub const MAX_EXPRESSION: usize = 2_000;
/// Deepest nesting of brackets in an expression.
pub const MAX_NESTING: usize = 10;
/// Most operators in an expression: a chain of them nests as deep in the parsed tree.
pub const MAX_OPERATORS: usize = 60;
/// Most dots in an expression, for the same reason.
pub const MAX_SELECTS: usize = 100;
/// Deepest nesting of a document.
const MAX_DOCUMENT_DEPTH: usize = 64;
/// Stack for parsing and evaluating, in bytes. Both recurse, a debug build takes up to 400 kB a bracket, and a worker
/// thread has 2 MB: so neither runs on the caller's stack. Twice what the limits above allow an expression to need.
const STACK: usize = 16 << 20;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A document whose text leaves may hold `${…}`; compiled once.
#[derive(Debug, Clone)]
pub struct Template {
    source: Value,
    root: Arc<Node>,
    names: Arc<BTreeSet<String>>,
}

/// Why a template could not be compiled or filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExprError {
    /// Path of the leaf, such as `files[0].content`.
    pub path: String,
    /// What is wrong. Never holds a value from the scope: it may be secret.
    pub message: String,
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for ExprError {}

/// A compiled document; a part without expressions is one `Literal`.
#[derive(Debug)]
enum Node {
    Literal(Value),
    Whole(Expr),
    Text(Vec<Piece>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

#[derive(Debug)]
enum Piece {
    Literal(String),
    Expr(Expr),
}

#[derive(Debug)]
struct Expr {
    source: String,
    program: Program,
}

impl Template {
    /// Compiles every `${…}` of a parsed document; every error at once.
    ///
    /// `$${` stands for a literal `${`. Keys are not expressions.
    pub fn compile(source: Value) -> Result<Self, Vec<ExprError>> {
        let (root, compiler) = with_stack(|| {
            let mut compiler = Compiler::default();
            let root = compiler.node(&source, &mut Path::default());
            (root, compiler)
        })
        .map_err(|e| vec![e])?;
        if compiler.errors.is_empty() {
            Ok(Self {
                source,
                root: Arc::new(root),
                names: Arc::new(compiler.names),
            })
        } else {
            Err(compiler.errors)
        }
    }

    /// Fills the document. A leaf that is one `${…}` keeps its type, one embedded in text becomes text.
    ///
    /// Errors: the first leaf that fails; a missing key, or a text with control characters embedded in text, is an error.
    pub fn fill(&self, scope: &Scope) -> Result<Value, ExprError> {
        if let Node::Literal(value) = &*self.root {
            return Ok(value.clone());
        }
        with_stack(|| {
            let mut context = Context::with_env(ENV.clone());
            functions::register(&mut context);
            // Only what is referenced: a scope may hold large values a template never looks at.
            for name in self.names.iter() {
                if let Some(value) = scope.get(name) {
                    context.add_variable_from_value(name.as_str(), functions::to_cel(value));
                }
            }
            fill(&self.root, &context, &mut Path::default())
        })?
    }

    /// The document without the leaves whose expressions refer to `name`: what is left says nothing of it.
    ///
    /// Errors: as [`compile`](Self::compile); none for a template that compiled.
    pub fn without(&self, name: &str) -> Result<Self, Vec<ExprError>> {
        let source = with_stack(|| pruned(&self.source, &self.root, name)).map_err(|e| vec![e])?;
        Self::compile(source.unwrap_or(Value::Null))
    }

    /// The document as written.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Top-level names the expressions refer to, `map`'s own variables among them.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

thread_local! {
    /// Whether this thread has the large stack already.
    static LARGE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a stack that is large enough for expressions, and waits.
///
/// Whoever compiles or fills many templates calls this around all of it: they then run in place, not on a thread each.
pub(super) fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ExprError> {
    if LARGE.get() {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("expressions".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                LARGE.set(true);
                work()
            })
            .ok()?;
        thread.join().ok()
    })
    .ok_or_else(|| ExprError {
        path: String::new(),
        message: "the expressions could not be evaluated: the machine has no thread or memory left for it"
            .into(),
    })
}

/// The path of a leaf, kept while walking so that only an error pays for text.
#[derive(Default)]
struct Path(Vec<Step>);

enum Step {
    Key(String),
    Index(usize),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Compiler {
    names: BTreeSet<String>,
    errors: Vec<ExprError>,
}

impl Compiler {
    fn fail(&mut self, path: &Path, message: impl Into<String>) {
        self.errors.push(ExprError {
            path: path.to_string(),
            message: message.into(),
        });
    }

    fn node(&mut self, value: &Value, path: &mut Path) -> Node {
        if path.0.len() > MAX_DOCUMENT_DEPTH {
            self.fail(path, format!("is nested deeper than {MAX_DOCUMENT_DEPTH} levels"));
            return Node::Literal(Value::Null);
        }
        match value {
            Value::String(text) => self.leaf(text, path),
            Value::Array(items) => {
                let nodes: Vec<Node> = items
                    .iter()
                    .enumerate()
                    .map(|(i, item)| self.child(item, Step::Index(i), path))
                    .collect();
                if nodes.iter().all(|n| matches!(n, Node::Literal(_))) {
                    Node::Literal(Value::Array(nodes.into_iter().filter_map(literal).collect()))
                } else {
                    Node::List(nodes)
                }
            }
            Value::Object(members) => {
                let nodes: Vec<(String, Node)> = members
                    .iter()
                    .map(|(key, item)| {
                        if key.contains("${") {
                            self.fail(
                                path,
                                format!("the key `{key}` holds an expression; only values may"),
                            );
                        }
                        (key.clone(), self.child(item, Step::Key(key.clone()), path))
                    })
                    .collect();
                if nodes.iter().all(|(_, n)| matches!(n, Node::Literal(_))) {
                    let members = nodes.into_iter().filter_map(|(k, n)| Some((k, literal(n)?)));
                    Node::Literal(Value::Object(members.collect()))
                } else {
                    Node::Map(nodes)
                }
            }
            other => Node::Literal(other.clone()),
        }
    }

    fn child(&mut self, value: &Value, step: Step, path: &mut Path) -> Node {
        path.0.push(step);
        let node = self.node(value, path);
        path.0.pop();
        node
    }

    fn leaf(&mut self, text: &str, path: &Path) -> Node {
        let parts = match leaf::split(text) {
            Ok(parts) => parts,
            Err(message) => {
                self.fail(path, message);
                return Node::Literal(Value::Null);
            }
        };
        let mut pieces: Vec<Piece> = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Part::Literal(text) => pieces.push(Piece::Literal(text)),
                Part::Expr(source) => match self.expr(source) {
                    Ok(expr) => pieces.push(Piece::Expr(expr)),
                    Err(message) => self.fail(path, message),
                },
            }
        }
        if pieces.iter().all(|p| matches!(p, Piece::Literal(_))) {
            let text = pieces.into_iter().map(|p| match p {
                Piece::Literal(text) => text,
                Piece::Expr(_) => String::new(),
            });
            return Node::Literal(Value::String(text.collect()));
        }
        if pieces.len() == 1
            && let Some(Piece::Expr(expr)) = pieces.pop()
        {
            return Node::Whole(expr);
        }
        Node::Text(pieces)
    }

    fn expr(&mut self, source: String) -> Result<Expr, String> {
        leaf::check(&source)?;
        let program = ENV.compile(&source).map_err(|e| {
            format!(
                "`{}` is not a valid CEL expression: {}",
                short(&source),
                first_line(&e.to_string())
            )
        })?;
        self.names
            .extend(program.references().variables().into_iter().map(String::from));
        Ok(Expr { source, program })
    }
}

/// The source of a node, none when it is a leaf that refers to `name`.
fn pruned(source: &Value, node: &Node, name: &str) -> Option<Value> {
    let says_nothing = match (node, source) {
        (Node::Literal(_), _) => true,
        (Node::Whole(expr), _) => !expr.refers_to(name),
        (Node::Text(pieces), _) => pieces.iter().all(|piece| match piece {
            Piece::Literal(_) => true,
            Piece::Expr(expr) => !expr.refers_to(name),
        }),
        (Node::List(nodes), Value::Array(items)) => {
            let left = items
                .iter()
                .zip(nodes)
                .filter_map(|(item, node)| pruned(item, node, name));
            return Some(Value::Array(left.collect()));
        }
        (Node::Map(nodes), Value::Object(members)) => {
            let left = nodes
                .iter()
                .filter_map(|(key, node)| Some((key.clone(), pruned(members.get(key)?, node, name)?)));
            return Some(Value::Object(left.collect()));
        }
        (Node::List(_) | Node::Map(_), _) => false,
    };
    says_nothing.then(|| source.clone())
}

fn literal(node: Node) -> Option<Value> {
    match node {
        Node::Literal(value) => Some(value),
        _ => None,
    }
}

/// An expression's text for a message: catalog text, so not secret, but bounded.
fn short(source: &str) -> String {
    let source = source.trim();
    if source.chars().count() <= 80 {
        return source.to_owned();
    }
    source.chars().take(79).chain(['…']).collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn fill(node: &Node, context: &Context<'_, '_>, path: &mut Path) -> Result<Value, ExprError> {
    Ok(match node {
        Node::Literal(value) => value.clone(),
        Node::Whole(expr) => expr.evaluate(context, path)?,
        Node::Text(pieces) => {
            let mut text = String::new();
            for piece in pieces {
                match piece {
                    Piece::Literal(literal) => text.push_str(literal),
                    Piece::Expr(expr) => expr.embed(&mut text, context, path)?,
                }
            }
            Value::String(text)
        }
        Node::List(items) => {
            let mut filled = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                path.0.push(Step::Index(i));
                filled.push(fill(item, context, path)?);
                path.0.pop();
            }
            Value::Array(filled)
        }
        Node::Map(members) => {
            let mut filled = Map::new();
            for (key, item) in members {
                path.0.push(Step::Key(key.clone()));
                filled.insert(key.clone(), fill(item, context, path)?);
                path.0.pop();
            }
            Value::Object(filled)
        }
    })
}

impl Expr {
    fn refers_to(&self, name: &str) -> bool {
        self.program.references().has_variable(name)
    }

    fn error(&self, path: &Path, message: impl fmt::Display) -> ExprError {
        ExprError {
            path: path.to_string(),
            message: format!("`{}`: {message}", short(&self.source)),
        }
    }

    fn evaluate(&self, context: &Context<'_, '_>, path: &Path) -> Result<Value, ExprError> {
        let value = self
            .program
            .execute(context)
            .map_err(|e| self.error(path, self.explain(&e)))?;
        functions::to_json(&value).map_err(|e| self.error(path, e))
    }

    /// Appends the value to `text`, refusing what could end the line or file it stands in.
    fn embed(&self, text: &mut String, context: &Context<'_, '_>, path: &Path) -> Result<(), ExprError> {
        match self.evaluate(context, path)? {
            Value::String(value) => {
                if value.chars().any(functions::breaks_text) {
                    return Err(self.error(
                        path,
                        "the value holds a line break or another control character and cannot stand inside a text",
                    ));
                }
                text.push_str(&value);
            }
            Value::Number(value) => text.push_str(&value.to_string()),
            Value::Bool(value) => text.push_str(if value { "true" } else { "false" }),
            Value::Null => return Err(self.error(path, "the value is null and cannot stand inside a text")),
            Value::Array(_) | Value::Object(_) => {
                return Err(self.error(
                    path,
                    "a list or map cannot stand inside a text; use join(…) or json(…)",
                ));
            }
        }
        Ok(())
    }

    /// What went wrong, without any value: cel's own messages print the operands.
    fn explain(&self, error: &ExecutionError) -> String {
        match error {
            // A key computed from a value could be secret; one written in the expression is not.
            ExecutionError::NoSuchKey(key) if self.source.contains(key.as_str()) => {
                format!("there is no `{key}`")
            }
            ExecutionError::NoSuchKey(_) => "there is no such key".into(),
            ExecutionError::UndeclaredReference(name) => format!("`{name}` is not known here"),
            ExecutionError::NoSuchOverload(e) => e.to_string(),
            ExecutionError::FunctionError { function, message } if functions::is_own(function) => {
                format!("{function}: {message}")
            }
            ExecutionError::FunctionError { function, .. } => {
                format!("{function} cannot work with this value")
            }
            ExecutionError::InvalidArgumentCount { expected, actual } => {
                format!("a function takes {expected} arguments, not {actual}")
            }
            ExecutionError::IndexOutOfBounds(_) => "the list has no element at this index".into(),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "division by zero".into()
            }
            ExecutionError::Overflow(..) => "the number is too large".into(),
            _ => "a value has the wrong type for this operation".into(),
        }
    }
}

#[cfg(test)]
mod tests;
