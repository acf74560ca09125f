//! Tables of decisions, and random lives of one instance in which no order of events may reach an illegal state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::domain::catalog::{KnownMechanisms, Sources};
use crate::domain::delivery::Delivery;
use proptest::prelude::*;
use serde_json::{Map, json};

const SERVICE: &str = "0a0a0a0a-0000-4000-8000-000000000001";
const SMALL: &str = "0a0a0a0a-0000-4000-8000-000000000011";
const BIG: &str = "0a0a0a0a-0000-4000-8000-000000000012";

fn catalog() -> Catalog {
    static LOADED: std::sync::OnceLock<Catalog> = std::sync::OnceLock::new();
    LOADED.get_or_init(load).clone()
}

fn load() -> Catalog {
    let schema = |properties: &str| {
        format!(
            "{{\"$schema\": \"http://json-schema.org/draft-04/schema#\", \"type\": \"object\", \
             \"additionalProperties\": false, \"properties\": {properties}}}"
        )
    };
    let size = schema(r#"{"size": {"type": "integer", "minimum": 1, "maximum": 9}}"#);
    let plan = |id: &str, name: &str| {
        format!(
            "id: {id}\nname: {name}\ndescription: A plan\nmetadata:\n  displayName: P\n  bullets: [One]\n"
        )
    };
    let sources: Sources = [
        (
            "catalog/alpha/offering.yaml",
            format!(
                "id: {SERVICE}\nname: alpha\ndescription: A service\nmetadata: {{displayName: A, longDescription: A., \
                 providerDisplayName: x, documentationUrl: 'https://example.test/d', supportUrl: 'https://example.test/s'}}\n\
                 runs_on: [local]\nbinding_rotatable: true\nmaximum_polling_duration: 600\n\
                 maintenance_info: {{version: 1.0.0, description: First.}}\nupdates:\n  small: [big]\n"
            ),
        ),
        (
            "catalog/alpha/process.yaml",
            "binaries: {server: ['true']}\ninstall: nothing\nports: [client]\ncommand: ['${bin.server}']\nready: {tcp: client}\n".into(),
        ),
        (
            "catalog/alpha/binding.yaml",
            "mechanism: sql\nsettings: {}\nendpoint: client\ndefault_role: owner\nroles: [owner, readonly]\n\
             credentials: {type: fake, password: '${user.password}'}\nendpoints: []\n"
                .into(),
        ),
        ("catalog/alpha/create.schema.json", size.clone()),
        ("catalog/alpha/update.schema.json", size),
        (
            "catalog/alpha/bind.schema.json",
            schema(r#"{"role": {"type": "string", "enum": ["owner", "readonly"]}}"#),
        ),
        (
            "catalog/alpha/icon.svg",
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 8 8\"><circle cx=\"4\" cy=\"4\" r=\"3\"/></svg>".into(),
        ),
        ("plans/alpha/small.yaml", plan(SMALL, "small")),
        ("plans/alpha/big.yaml", plan(BIG, "big")),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text))
    .collect();
    Catalog::load(&sources, &KnownMechanisms).unwrap()
}

fn attributes(size: u8) -> InstanceAttributes {
    InstanceAttributes {
        service_id: SERVICE.into(),
        plan_id: SMALL.into(),
        organization_guid: "o".into(),
        space_guid: "s".into(),
        parameters: json!({"size": size}).as_object().unwrap().clone(),
    }
}

fn instance(state: InstanceState) -> Instance {
    Instance {
        iid: "i".into(),
        platform: "p".into(),
        instance_id: "x".into(),
        attributes: attributes(1),
        state,
        usable: true,
        context: None,
        maintenance_version: Some("1.0.0".into()),
        dashboard_url: None,
        facts: Map::new(),
        endpoints: Vec::new(),
        created_at: 0,
        updated_at: 0,
        retained_until: None,
    }
}

/// An instance in a state, with the operation that belongs to it.
fn now(state: InstanceState) -> InstanceNow {
    let kind = match state {
        InstanceState::Provisioning => Some(OperationKind::Provision),
        InstanceState::Updating => Some(OperationKind::Update),
        InstanceState::Deprovisioning => Some(OperationKind::Deprovision),
        _ => None,
    };
    InstanceNow {
        instance: instance(state),
        open: kind.map(|kind| OpenOperation {
            id: "running".into(),
            kind,
            target: (kind == OperationKind::Update).then(|| UpdateTarget {
                attributes: attributes(2),
                maintenance_version: Some("1.0.0".into()),
            }),
        }),
        open_on_bindings: 0,
        bindings: 0,
    }
}

const STATES: [InstanceState; 7] = [
    InstanceState::Provisioning,
    InstanceState::ProvisionFailed,
    InstanceState::Ready,
    InstanceState::Updating,
    InstanceState::Deprovisioning,
    InstanceState::DeprovisionFailed,
    InstanceState::Gone,
];

/// What a decision comes to, in a word.
fn word<T>(decision: Result<T, Error>, name: impl Fn(&T) -> &'static str) -> String {
    match decision {
        Ok(decision) => name(&decision).to_owned(),
        Err(error) => format!("{:?}", error.kind),
    }
}

#[test]
fn provision_by_state_and_sameness() {
    use InstanceState as S;
    let catalog = catalog();
    let name = |d: &ProvisionDecision| match d {
        ProvisionDecision::Create(_) => "create",
        ProvisionDecision::Exists => "exists",
        ProvisionDecision::Running(_) => "running",
    };
    // state, identical with the flag, identical without, different with the flag
    let table = [
        (None, "create", "AsyncRequired", "create"),
        (Some(S::Provisioning), "running", "AsyncRequired", "Conflict"),
        (Some(S::ProvisionFailed), "create", "AsyncRequired", "Conflict"),
        (Some(S::Ready), "exists", "exists", "Conflict"),
        (Some(S::Updating), "Concurrency", "AsyncRequired", "Concurrency"),
        (
            Some(S::Deprovisioning),
            "Concurrency",
            "AsyncRequired",
            "Concurrency",
        ),
        (
            Some(S::DeprovisionFailed),
            "Concurrency",
            "AsyncRequired",
            "Concurrency",
        ),
        (Some(S::Gone), "create", "AsyncRequired", "create"),
    ];
    for (state, same, without, different) in table {
        let found = state.map(now);
        let ask = |size: u8, flag: bool| {
            let request = Provision {
                attributes: attributes(size),
                accepts_incomplete: flag,
                ..Provision::default()
            };
            word(provision(&catalog, &|_, _| true, &request, found.as_ref()), name)
        };
        assert_eq!(ask(1, true), same, "{state:?} identical");
        assert_eq!(ask(1, false), without, "{state:?} identical without the flag");
        assert_eq!(ask(5, true), different, "{state:?} different");
    }
}

#[test]
fn update_by_state() {
    use InstanceState as S;
    let catalog = catalog();
    let name = |d: &UpdateDecision| match d {
        UpdateDecision::Start(..) => "start",
        UpdateDecision::Nothing => "nothing",
        UpdateDecision::Running(_) => "running",
    };
    // state, to another size, to the size it has, to the size an open update goes to
    let table = [
        (None, "NotFound", "NotFound", "NotFound"),
        (Some(S::Provisioning), "Concurrency", "Concurrency", "Concurrency"),
        (Some(S::ProvisionFailed), "BadRequest", "BadRequest", "BadRequest"),
        (Some(S::Ready), "start", "nothing", "start"),
        (Some(S::Updating), "Concurrency", "Concurrency", "running"),
        (
            Some(S::Deprovisioning),
            "Concurrency",
            "Concurrency",
            "Concurrency",
        ),
        (
            Some(S::DeprovisionFailed),
            "BadRequest",
            "BadRequest",
            "BadRequest",
        ),
        (Some(S::Gone), "NotFound", "NotFound", "NotFound"),
    ];
    for (state, other, same, running) in table {
        let found = state.map(now);
        let ask = |size: u8| {
            let request = Update {
                service_id: SERVICE.into(),
                parameters: attributes(size).parameters,
                accepts_incomplete: true,
                ..Update::default()
            };
            word(update(&catalog, &|_, _| true, &request, found.as_ref()), name)
        };
        assert_eq!(
            (ask(3).as_str(), ask(1).as_str(), ask(2).as_str()),
            (other, same, running),
            "{state:?}"
        );
    }
}

#[test]
fn deprovision_by_state() {
    use InstanceState as S;
    let name = |d: &DeprovisionDecision| match d {
        DeprovisionDecision::Start { supersede: None } => "start",
        DeprovisionDecision::Start { supersede: Some(_) } => "supersede",
        DeprovisionDecision::Running(_) => "running",
    };
    let request = Delete {
        service_id: Some(SERVICE.into()),
        plan_id: Some(SMALL.into()),
        accepts_incomplete: true,
        ..Delete::default()
    };
    for (state, expected) in [
        (S::Provisioning, "supersede"),
        (S::ProvisionFailed, "start"),
        (S::Ready, "start"),
        (S::Updating, "supersede"),
        (S::Deprovisioning, "running"),
        (S::DeprovisionFailed, "start"),
        (S::Gone, "Gone"),
    ] {
        assert_eq!(
            word(deprovision(false, &request, Some(&now(state))), name),
            expected,
            "{state:?}"
        );
    }
    assert_eq!(word(deprovision(false, &request, None), name), "Gone");
    let mut busy = now(S::Ready);
    busy.open_on_bindings = 1;
    assert_eq!(
        word(deprovision(false, &request, Some(&busy)), name),
        "Concurrency",
        "D-06"
    );
    let mut bound = now(S::Ready);
    bound.bindings = 2;
    assert_eq!(
        word(deprovision(true, &request, Some(&bound)), name),
        "BadRequest",
        "D-09"
    );
    assert_eq!(
        word(deprovision(false, &request, Some(&bound)), name),
        "start",
        "D-09"
    );
}

fn binding(state: BindingState, open: Option<OperationKind>) -> BindingNow {
    let attributes = BindingAttributes {
        service_id: SERVICE.into(),
        plan_id: SMALL.into(),
        ..BindingAttributes::default()
    };
    BindingNow {
        binding: Binding {
            bid: "b".into(),
            iid: "i".into(),
            platform: "p".into(),
            binding_id: "x".into(),
            attributes: attributes.clone(),
            requested: attributes,
            state,
            handle: String::new(),
            residue: false,
            delivery: Delivery::Inline,
            generation: 0,
            rotations: 0,
            service_account: None,
            secret_namespace: None,
            expires_at: None,
            renew_before: None,
            created_at: 0,
            updated_at: 0,
        },
        open: open.map(|kind| OpenOperation {
            id: "running".into(),
            kind,
            target: None,
        }),
    }
}

fn ways() -> Ways {
    Ways {
        allowed: vec![Delivery::Inline],
        ..Ways::default()
    }
}

#[test]
fn bind_and_unbind_by_state() {
    use BindingState as B;
    use OperationKind as K;
    let catalog = catalog();
    let ready = now(InstanceState::Ready);
    let bind_name = |d: &BindDecision| match d {
        BindDecision::Create(..) => "create",
        BindDecision::Exists => "exists",
        BindDecision::Running(_) => "running",
    };
    let unbind_name = |d: &UnbindDecision| match d {
        UnbindDecision::Start { supersede: None } => "start",
        UnbindDecision::Start { supersede: Some(_) } => "supersede",
        UnbindDecision::Running(_) => "running",
    };
    // state, open operation, identical bind, other bind, unbind
    let table = [
        (None, None, "create", "create", "Gone"),
        (
            Some(B::Creating),
            Some(K::Bind),
            "running",
            "Conflict",
            "supersede",
        ),
        (Some(B::Ready), None, "exists", "Conflict", "start"),
        // It stays what it is while its credentials change.
        (Some(B::Ready), Some(K::Rotate), "exists", "Conflict", "supersede"),
        (Some(B::Ready), Some(K::Retire), "exists", "Conflict", "supersede"),
        (
            Some(B::Ready),
            Some(K::Revoke),
            "Concurrency",
            "Conflict",
            "supersede",
        ),
        // The last look goes on for a moment after the binding is gone.
        (
            Some(B::Gone),
            Some(K::Settle),
            "Concurrency",
            "Concurrency",
            "Gone",
        ),
        (
            Some(B::Expired),
            Some(K::Settle),
            "Concurrency",
            "Conflict",
            "supersede",
        ),
        (Some(B::Failed), None, "create", "Conflict", "start"),
        (
            Some(B::Failed),
            Some(K::Revoke),
            "Concurrency",
            "Conflict",
            "supersede",
        ),
        (
            Some(B::Deleting),
            Some(K::Unbind),
            "Concurrency",
            "Conflict",
            "running",
        ),
        (
            Some(B::Deleting),
            Some(K::Revoke),
            "Concurrency",
            "Conflict",
            "supersede",
        ),
        (Some(B::DeleteFailed), None, "Concurrency", "Conflict", "start"),
        (Some(B::Expired), None, "Conflict", "Conflict", "start"),
        (Some(B::Gone), None, "create", "create", "Gone"),
    ];
    for (state, open, same, other, off) in table {
        let found = state.map(|state| binding(state, open));
        let ask = |role: Option<&str>| {
            let mut request = Bind {
                accepts_incomplete: true,
                binding_id: "x".into(),
                ..Bind::default()
            };
            request.attributes = binding(B::Ready, None).binding.attributes;
            if let Some(role) = role {
                request.attributes.parameters.insert("role".into(), json!(role));
            }
            word(
                bind(&catalog, &ways(), &request, Some(&ready), found.as_ref(), None, 0),
                bind_name,
            )
        };
        assert_eq!(ask(None), same, "{state:?} {open:?} identical");
        assert_eq!(ask(Some("readonly")), other, "{state:?} {open:?} different");
        let request = Delete {
            service_id: Some(SERVICE.into()),
            plan_id: Some(SMALL.into()),
            accepts_incomplete: true,
            ..Delete::default()
        };
        assert_eq!(
            word(
                unbind(&catalog, &request, Some(&ready), found.as_ref()),
                unbind_name
            ),
            off,
            "{state:?} {open:?}"
        );
    }
}

#[test]
fn a_rotation_in_place_by_state() {
    use BindingState as B;
    use OperationKind as K;
    let catalog = catalog();
    let decide = |on: &InstanceNow, found: Option<BindingNow>, at: Millis| {
        word(rotate(&catalog, Some(on), found.as_ref(), at), |d| match d {
            RotateDecision::Start => "start",
            RotateDecision::Running(_) => "running",
        })
    };
    let there = |state: B, open: Option<K>| {
        let mut there = binding(state, open);
        there.binding.delivery = Delivery::Reference;
        there.binding.expires_at = Some(10);
        Some(there)
    };
    let ready = now(InstanceState::Ready);
    for (state, open, expected) in [
        (B::Creating, Some(K::Bind), "Concurrency"),
        (B::Ready, None, "start"),
        (B::Ready, Some(K::Rotate), "running"),
        (B::Ready, Some(K::Retire), "Concurrency"),
        (B::Deleting, Some(K::Unbind), "Concurrency"),
        (B::DeleteFailed, None, "Conflict"),
        (B::Failed, None, "NotFound"),
        (B::Expired, None, "NotFound"),
        (B::Gone, None, "NotFound"),
    ] {
        assert_eq!(
            decide(&ready, there(state, open), 9),
            expected,
            "{state:?} {open:?}"
        );
    }
    assert_eq!(decide(&ready, there(B::Ready, None), 10), "NotFound", "expired");
    assert_eq!(decide(&ready, None, 0), "NotFound");
    for state in STATES.into_iter().filter(|s| *s != InstanceState::Ready) {
        assert_eq!(
            decide(&now(state), there(B::Ready, None), 0),
            "Concurrency",
            "{state:?}"
        );
    }
    let inline = Some(binding(B::Ready, None));
    assert_eq!(decide(&ready, inline, 0), "RotationNotSupported");
    let mut unknown_plan = there(B::Ready, None);
    unknown_plan.as_mut().unwrap().binding.attributes.plan_id = "left".into();
    assert_eq!(decide(&ready, unknown_plan, 0), "Conflict");
}

#[test]
fn the_brokers_own_parameters_are_not_the_plans() {
    let catalog = catalog();
    let ready = now(InstanceState::Ready);
    let full = Ways {
        allowed: vec![Delivery::Reference, Delivery::Inline],
        identity: true,
        vault: true,
        ..Ways::default()
    };
    let ask = |ways: &Ways, parameters: serde_json::Value, before: Option<&BindingNow>| {
        let mut request = Bind {
            accepts_incomplete: true,
            binding_id: "y".into(),
            ..Bind::default()
        };
        request.attributes = binding(BindingState::Ready, None).binding.attributes;
        request.attributes.parameters = parameters.as_object().unwrap().clone();
        request.attributes.predecessor_binding_id = before.map(|b| b.binding.binding_id.clone());
        bind(&catalog, ways, &request, Some(&ready), None, before, 0).map(|decision| match decision {
            BindDecision::Create(_, made) => made.1.delivery,
            _ => panic!("not created"),
        })
    };
    let role = json!({"delivery": "inline", "role": "readonly"});
    assert_eq!(ask(&full, json!({}), None).unwrap(), Delivery::Reference);
    assert_eq!(ask(&full, role.clone(), None).unwrap(), Delivery::Inline);
    let said = ask(&ways(), role, None).unwrap_err().description;
    assert!(
        said.starts_with("parameters.delivery: is not known here"),
        "{said}"
    );
    let said = ask(&full, json!({"delivery": "secret"}), None)
        .unwrap_err()
        .description;
    assert!(said.starts_with("parameters.delivery: choose one of"), "{said}");
    let inline = binding(BindingState::Ready, None);
    assert_eq!(
        ask(&full, json!({}), Some(&inline)).unwrap(),
        Delivery::Inline,
        "as before"
    );
}

/// What can happen to an instance: a platform's call, or the end of the open operation.
#[derive(Debug, Clone, Copy)]
enum Event {
    Put(u8),
    Patch(u8),
    Delete,
    EndsWell,
    EndsBadly,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (1..4_u8).prop_map(Event::Put),
        (1..4_u8).prop_map(Event::Patch),
        Just(Event::Delete),
        Just(Event::EndsWell),
        Just(Event::EndsBadly),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    /// However events follow one another: an operation is open exactly in the states that mean one, what was accepted
    /// stands until something else was, and the instance can always be got rid of.
    #[test]
    fn no_order_of_events_reaches_an_illegal_state(events in events()) {
        let catalog = catalog();
        let everything = |_: &Offering, _: &Plan| true;
        let mut life: Option<InstanceNow> = None;
        let delete = Delete {
            service_id: Some(SERVICE.into()),
            plan_id: Some(SMALL.into()),
            accepts_incomplete: true,
            ..Delete::default()
        };
        for event in events {
            let before = life.clone();
            match event {
                Event::Put(size) => {
                    let request = Provision { attributes: attributes(size), accepts_incomplete: true, ..Provision::default() };
                    if let Ok(ProvisionDecision::Create(_)) = provision(&catalog, &everything, &request, life.as_ref()) {
                        let mut fresh = now(InstanceState::Provisioning);
                        fresh.instance.attributes = attributes(size);
                        life = Some(fresh);
                    }
                }
                Event::Patch(size) => {
                    let request = Update {
                        service_id: SERVICE.into(),
                        parameters: attributes(size).parameters,
                        accepts_incomplete: true,
                        ..Update::default()
                    };
                    if let Ok(UpdateDecision::Start(_, target)) = update(&catalog, &everything, &request, life.as_ref()) {
                        let there = life.as_mut().unwrap();
                        prop_assert!(there.open.is_none());
                        prop_assert_ne!(&target.attributes, &there.instance.attributes);
                        there.instance.state = InstanceState::Updating;
                        there.open = Some(OpenOperation { id: "u".into(), kind: OperationKind::Update, target: Some(*target) });
                    }
                }
                Event::Delete => match deprovision(false, &delete, life.as_ref()) {
                    Ok(DeprovisionDecision::Start { supersede }) => {
                        let there = life.as_mut().unwrap();
                        prop_assert_eq!(supersede, there.open.as_ref().map(|o| o.id.clone()), "takes over exactly what is open");
                        there.instance.state = InstanceState::Deprovisioning;
                        there.open = Some(OpenOperation { id: "d".into(), kind: OperationKind::Deprovision, target: None });
                    }
                    Ok(DeprovisionDecision::Running(_)) => {}
                    Err(error) => {
                        prop_assert_eq!(error.kind, ErrorKind::Gone);
                        prop_assert!(life.as_ref().is_none_or(|n| n.instance.state == InstanceState::Gone));
                    }
                },
                Event::EndsWell | Event::EndsBadly => {
                    if let Some(there) = &mut life && let Some(open) = there.open.take() {
                        let well = matches!(event, Event::EndsWell);
                        there.instance.state = match (open.kind, well) {
                            (OperationKind::Provision, false) => InstanceState::ProvisionFailed,
                            (OperationKind::Deprovision, true) => InstanceState::Gone,
                            (OperationKind::Deprovision, false) => InstanceState::DeprovisionFailed,
                            _ => InstanceState::Ready,
                        };
                        if well && let Some(target) = open.target {
                            there.instance.attributes = target.attributes;
                        }
                    }
                }
            }
            if let Some(there) = &life {
                let working = matches!(
                    there.instance.state,
                    InstanceState::Provisioning | InstanceState::Updating | InstanceState::Deprovisioning
                );
                prop_assert_eq!(working, there.open.is_some());
                if let Some(before) = before && there.instance.attributes != before.instance.attributes {
                    prop_assert!(
                        matches!(event, Event::EndsWell | Event::Put(_)),
                        "attributes change only when an update ends well or a new life begins"
                    );
                }
            }
        }
    }
}

#[test]
fn every_state_is_decided_on() {
    // A state added later must be put into the tables above.
    for state in STATES {
        assert_eq!(InstanceState::parse(state.as_str()), Some(state));
    }
}
