#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use serde_json::json;

fn scope() -> Scope {
    let Value::Object(scope) = json!({
        "plan": {"memory": "1Gi", "cpu": 3, "ratio": 0.5, "on": true, "tags": ["a", "b"], "none": null},
        "params": {"name": "Ünsere Größe!", "evil": "x\nport 1", "list": [1, 2], "big": u64::MAX},
        "admin": {"password": "hunter2hunter2"},
    }) else {
        panic!("an object")
    };
    scope
}

fn fill_one(leaf: Value) -> Result<Value, String> {
    Template::compile(leaf)
        .map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?
        .fill(&scope())
        .map_err(|e| e.to_string())
}

#[test]
fn leaves_keep_their_type_alone_and_become_text_inside_text() {
    let table = [
        (json!("${plan.cpu}"), json!(3)),
        (json!("${plan.cpu * 2}"), json!(6)),
        (json!("cpu=${plan.cpu}"), json!("cpu=3")),
        (json!("${plan.ratio}"), json!(0.5)),
        (json!("${plan.on}"), json!(true)),
        (json!("is ${plan.on}"), json!("is true")),
        (json!("${plan.tags}"), json!(["a", "b"])),
        (json!("${plan.none}"), json!(null)),
        (json!("${params.big}"), json!(u64::MAX)),
        (json!("${plan}"), scope()["plan"].clone()),
        (json!("$${plan.cpu}"), json!("${plan.cpu}")),
        (json!("a $$${plan.cpu}"), json!("a $${plan.cpu}")),
        (json!("cost $5 {x}"), json!("cost $5 {x}")),
        (json!("${plan.cpu}${plan.cpu}"), json!("33")),
        (json!("${ {'a': plan.cpu} }"), json!({"a": 3})),
        (json!("${'}' + \"}\" + r'\\' + '\\'}' }"), json!("}}\\'}")),
        (json!("${'''a'b}''' + plan.memory}"), json!("a'b}1Gi")),
        (
            json!("${has(params.absent) ? params.absent : 'dflt'}"),
            json!("dflt"),
        ),
        (json!("${params.list.map(x, x * 2)}"), json!([2, 4])),
        (json!("${size(plan.tags) + 1}"), json!(3)),
        (
            json!({"k": ["${plan.cpu}", 1, "t"], "z": null}),
            json!({"k": [3, 1, "t"], "z": null}),
        ),
        (json!(""), json!("")),
    ];
    for (leaf, expected) in table {
        assert_eq!(fill_one(leaf.clone()), Ok(expected), "{leaf}");
    }
}

#[test]
fn functions() {
    let table = [
        (
            "${sha256('abc')}",
            json!("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ),
        (
            "${pbkdf2('passwd', 'salt', 1)}",
            json!("55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"),
        ),
        (
            "${pbkdf2(join(['pppppppppp', 'pppppppppp', 'pppppppppp', 'pppppppppp', 'pppppppppp', 'pppppppppp',
              'pppppppppp', 'pppppppppp', 'pppppppppp', 'pppppppppp'], ''), 'NaCl', 1000)}",
            json!("43d5ab3171d122832429c78998f7556df8c0170d39422de92562345090d5bb24"),
        ),
        ("${b64('abc')}", json!("YWJj")),
        ("${join(plan.tags, ', ')}", json!("a, b")),
        ("${join([1, 2], '')}", json!("12")),
        ("${dns_name(params.name)}", json!("nsere-gr-e")),
        ("${quantity(plan.memory)}", json!(1_073_741_824_i64)),
        ("${quantity('1.5Gi') / 2}", json!(805_306_368_i64)),
        ("${quantity('10k')}", json!(10_000)),
        ("${quantity('0.1Ki')}", json!(103)),
        ("${mib(quantity(plan.memory) / 4)}", json!(256)),
        ("${json(plan.tags)}", json!(r#"["a","b"]"#)),
        ("x ${json(params.evil)}", json!(r#"x "x\nport 1""#)),
    ];
    for (leaf, expected) in table {
        assert_eq!(fill_one(json!(leaf)), Ok(expected), "{leaf}");
    }
    let long = format!("${{dns_name('{}')}}", "a-".repeat(60));
    assert_eq!(fill_one(json!(long)).unwrap().as_str().unwrap().len(), 63);
}

#[test]
fn errors_name_the_leaf_and_never_a_value() {
    let table = [
        ("${params.absent}", "there is no `absent`"),
        ("${nowhere.x}", "`nowhere` is not known here"),
        ("text ${params.evil}", "line break"),
        ("text ${plan.none}", "null"),
        ("text ${plan.tags}", "a list or map"),
        ("${quantity(admin.password)}", "quantity: is not an amount"),
        ("${int(admin.password)}", "int cannot work"),
        ("${admin.password + 1}", "wrong type"),
        ("${admin.password < 1}", ""),
        ("${plan[admin.password]}", "no such key"),
        ("${admin[params.list]}", ""),
        ("${sha256(1)}", "sha256: takes a text"),
        ("${pbkdf2('a', 'b', 1001)}", "pbkdf2: takes 1 to 1000 rounds"),
        ("${dns_name('!!')}", "no letter or digit"),
        ("${1 / 0}", "division by zero"),
        ("${plan.tags[9]}", "no element"),
        ("${9223372036854775807 + 1}", "too large"),
        ("${{1: 2}}", "key that is not a text"),
    ];
    for (leaf, part) in table {
        let error = fill_one(json!({"a": [{"b": leaf}]})).expect_err(leaf);
        assert!(error.starts_with("a[0].b: "), "{error}");
        assert!(error.contains(part), "{leaf}: {error}");
        assert!(!error.contains("hunter2"), "{leaf}: {error}");
        assert!(!error.contains("port 1"), "{leaf}: {error}");
    }
}

#[test]
fn every_control_character_is_refused_inside_text_and_kept_alone() {
    for c in [
        '\0', '\n', '\r', '\t', '\u{b}', '\u{1b}', '\u{7f}', '\u{85}', '\u{2028}', '\u{2029}',
    ] {
        let Value::Object(scope) = json!({"v": format!("a{c}b")}) else {
            panic!("an object")
        };
        let inside = Template::compile(json!("x${v}")).unwrap();
        assert!(inside.fill(&scope).is_err(), "{c:?}");
        let alone = Template::compile(json!("${v}")).unwrap();
        assert_eq!(alone.fill(&scope).unwrap(), json!(format!("a{c}b")));
    }
}

#[test]
fn compile_reports_every_error_with_its_path() {
    let errors = Template::compile(json!({
        "a": "${1 +}",
        "b": ["ok", "${open"],
        "c": "${}",
        "${d}": 1,
        "e": format!("${{{}}}", "a".repeat(MAX_EXPRESSION + 1)),
        "f": format!("${{{}1{}}}", "(".repeat(MAX_NESTING + 1), ")".repeat(MAX_NESTING + 1)),
        "g": format!("${{{}true}}", "!".repeat(1_500)),
        "h": format!("${{1{}}}", "+1".repeat(MAX_OPERATORS + 1)),
        "i": format!("${{a{}}}", ".b".repeat(MAX_SELECTS + 1)),
    }))
    .unwrap_err();
    let text = errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    for part in [
        "a: `1 +` is not",
        "b[1]: a `${` is not closed",
        "c: `${}` holds",
        "`${d}`",
        "e: ",
        "f: ",
        "g: ",
        "h: ",
        "i: ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(errors.len(), 9, "{text}");
}

#[test]
fn the_largest_expressions_that_are_let_in_fit_the_stack_of_a_worker() {
    let (n, ops) = (MAX_NESTING, MAX_OPERATORS);
    for source in [
        format!("{}1{}", "(".repeat(n), ")".repeat(n)),
        format!("{}1{}", "[".repeat(n), "]".repeat(n)),
        format!(
            "{}[1{}]{}",
            "[1].map(x,".repeat(n - 1),
            "+1".repeat(ops),
            ")".repeat(n - 1)
        ),
        format!("{}1", "true?1:".repeat(ops)),
        format!("{}true", "!".repeat(ops)),
        format!("plan{}", ".a".repeat(MAX_SELECTS)),
    ] {
        std::thread::Builder::new()
            .stack_size(2 << 20)
            .spawn(move || {
                let template = Template::compile(json!(format!("${{{source}}}"))).unwrap();
                let _ = template.fill(&scope());
            })
            .unwrap()
            .join()
            .unwrap();
    }
}

#[test]
fn names_are_the_top_level_ones() {
    let template =
        Template::compile(json!(["${plan.cpu}", "x${params.a}${sha256(admin.password)}"])).unwrap();
    let names: Vec<&str> = template.names().iter().map(String::as_str).collect();
    assert_eq!(names, ["admin", "params", "plan"]);
}

#[test]
fn a_parameter_is_never_read_as_an_expression() {
    let Value::Object(scope) = json!({"params": {"x": "${admin.password}"}, "admin": {"password": "p"}})
    else {
        panic!("an object")
    };
    let template = Template::compile(json!({"a": "${params.x}", "b": "v ${params.x}"})).unwrap();
    assert_eq!(
        template.fill(&scope).unwrap(),
        json!({"a": "${admin.password}", "b": "v ${admin.password}"})
    );
}

#[test]
fn what_depends_on_a_name_can_be_left_out() {
    let template = Template::compile(json!({
        "host": "${endpoint.host}",
        "literal": "user",
        "password": "${user.password}",
        "uri": "x://${user.name}:${user.password}@${endpoint.host}/",
        "maybe": "${has(user.prefix) ? user.prefix : null}",
        "in_a_list": ["${endpoint.host}", "${[1].map(n, user.name)[0]}"],
        "nested": {"a": {"seed": "${user.seed}", "port": "${endpoint.port}"}},
        "not_the_name": "${endpoint.user}",
    }))
    .unwrap();
    let Value::Object(scope) = json!({"endpoint": {"host": "h", "port": 1, "user": "u"}}) else {
        panic!("an object")
    };
    let left = template.without("user").unwrap();
    assert!(!left.names().contains("user"));
    assert_eq!(
        left.fill(&scope).unwrap(),
        json!({"host": "h", "literal": "user", "in_a_list": ["h"], "nested": {"a": {"port": 1}}, "not_the_name": "u"})
    );
    let all = Template::compile(json!("${user}"))
        .unwrap()
        .without("user")
        .unwrap();
    assert_eq!(all.fill(&scope).unwrap(), Value::Null);
}
