//! The chart as Helm 3 and Helm 4 render it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use kanchi_crds::chart_readme;
use kanchi_crds::generate::CHART_VALUES;
use serde::Deserialize as _;
use serde_json::{Value, json};

/// Both helms, built by the lab where they are missing.
static HELMS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    ["helm3", "helm4"].map(|name| {
        let output = Command::new(root().join("e2e/lab/lab"))
            .args(["tool", name])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "no {name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
});

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn chart() -> PathBuf {
    root().join("charts/kanchi")
}

/// Runs a helm with values on its standard input.
fn helm(helm: &Path, arguments: &[&str], values: &Value) -> Result<String, String> {
    let chart = chart();
    let mut command = Command::new(helm);
    command
        .args(arguments)
        .arg(&chart)
        .args(["--values", "-", "--namespace", "kanchi-system"]);
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(values.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn text_of(binary: &Path, values: &Value) -> Result<String, String> {
    helm(binary, &["template", "kanchi", "--kube-version", "1.34.0"], values)
}

/// Returns the objects, sorted.
fn objects(binary: &Path, values: &Value) -> Vec<Value> {
    let text = text_of(binary, values).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    let mut objects: Vec<Value> = documents.filter(|object| !object.is_null()).collect();
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"].to_string()));
    objects
}

fn rendered(values: &Value) -> Vec<Value> {
    objects(&HELMS[1], values)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Everything on, and everything different from its default.
fn everything() -> Value {
    json!({
        "commonLabels": { "team": "platform" },
        "imagePullSecrets": [{ "name": "pull" }],
        "watchNamespaces": ["shop", "mail"],
        "store": {
            "caSecretRef": { "name": "postgres-ca" },
            "monitorAddress": "pooler.databases.svc:6432",
            "evaluation": { "enabled": true, "password": "evaluation" }
        },
        "operator": {
            "replicas": 2, "installationId": "here", "priorityClassName": "system-cluster-critical",
            "serviceAccount": { "annotations": { "a": "b" } }, "podAnnotations": { "c": "d" }, "podLabels": { "e": "f" },
            "nodeSelector": { "disk": "ssd" }, "tolerations": [{ "operator": "Exists" }],
            "affinity": { "nodeAffinity": {} }, "extraEnv": [{ "name": "HTTPS_PROXY", "value": "http://proxy" }]
        },
        "monitor": { "imagePullSecrets": ["pull"] },
        "podMonitor": { "enabled": true, "labels": { "release": "prometheus" } },
        "prometheusRule": { "enabled": true }
    })
}

fn value_sets() -> [Value; 4] {
    let evaluation = json!({ "store": { "evaluation": { "enabled": true, "password": "evaluation" } } });
    let least = json!({ "crds": { "enabled": false }, "rbac": { "aggregateRoles": false }, "networkPolicy": { "enabled": false } });
    [json!({}), evaluation, least, everything()]
}

#[test]
fn both_helms_find_nothing_to_complain_about() {
    for binary in HELMS.iter() {
        for values in value_sets() {
            let said = helm(binary, &["lint", "--strict"], &values);
            assert!(said.is_ok(), "{}: {values}: {said:?}", binary.display());
        }
    }
}

#[test]
fn rendering_is_the_same_each_time_and_with_both_helms() {
    for values in value_sets() {
        let [three, four] = [0, 1].map(|index| text_of(&HELMS[index], &values).unwrap());
        assert_eq!(three, text_of(&HELMS[0], &values).unwrap());
        assert_eq!(four, text_of(&HELMS[1], &values).unwrap());
        assert_eq!(objects(&HELMS[0], &values), objects(&HELMS[1], &values));
    }
}

#[test]
fn templates_look_nothing_up_draw_no_lots_and_hook_into_nothing() {
    fn texts(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                texts(&path, found);
            } else {
                found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    texts(&chart().join("templates"), &mut found);
    for (path, text) in found {
        let code: String = text
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split_once("}}"))
            .map(|(code, _)| code)
            .collect();
        for word in [
            "lookup",
            "randAlpha",
            "randBytes",
            "uuidv4",
            "genCA",
            "genSelfSigned",
            "genPrivateKey",
            "htpasswd",
            "now",
        ] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
        assert!(!text.contains("helm.sh/hook"), "{} has a hook", path.display());
    }
}

#[test]
fn values_that_nobody_knows_are_refused_at_every_level() {
    for binary in HELMS.iter() {
        for values in [
            json!({ "surprise": true }),
            json!({ "operator": { "replica": 2 } }),
            json!({ "operator": { "image": { "version": "1" } } }),
            json!({ "store": { "url": "postgresql://u:p@h/d" } }),
            json!({ "store": { "evaluation": { "enabled": true, "password": "short" } } }),
            json!({ "watchNamespaces": ["Not A Namespace"] }),
            json!({ "operator": { "replicas": "two" } }),
        ] {
            assert!(text_of(binary, &values).is_err(), "{values}");
        }
    }
}

#[test]
fn an_evaluation_postgres_without_a_password_is_refused_with_a_word_on_what_to_do() {
    let values = json!({ "store": { "evaluation": { "enabled": true } } });
    for binary in HELMS.iter() {
        let error = text_of(binary, &values).unwrap_err();
        assert!(error.contains("store.evaluation.password must be set"), "{error}");
    }
}

#[test]
fn every_value_has_a_comment_and_a_place_in_the_schema() {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    for entry in chart_readme::entries(CHART_VALUES).unwrap() {
        assert!(!entry.comment.is_empty(), "{} has no comment", entry.path);
        let mut node = &schema;
        for name in entry.path.split('.') {
            node = &node["properties"][name];
            if let Some(reference) = node["$ref"].as_str() {
                node = schema.pointer(reference.trim_start_matches('#')).unwrap();
            }
            assert!(!node.is_null(), "{} is not in the schema", entry.path);
        }
    }
}

#[test]
fn every_pod_is_restricted_and_its_root_file_system_read_only() {
    let objects = rendered(&everything());
    let workloads: Vec<&Value> = objects
        .iter()
        .filter(|object| !object["spec"]["template"]["spec"].is_null())
        .collect();
    assert_eq!(workloads.len(), 2);
    for workload in workloads {
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
            assert!(container["resources"]["requests"].is_object() && container["resources"]["limits"].is_object());
            assert!(!container["readinessProbe"].is_null());
        }
        let operator = workload["kind"] == "Deployment";
        assert_eq!(
            pod["automountServiceAccountToken"], operator,
            "the token is mounted where it is used"
        );
    }
    for account in of_kind(&objects, "ServiceAccount") {
        assert_eq!(account["automountServiceAccountToken"], false);
    }
}

#[test]
fn no_secret_is_in_arguments_environment_or_anything_but_a_secret() {
    let values = json!({ "store": { "evaluation": { "enabled": true, "password": "canary-password" } } });
    for object in rendered(&values) {
        assert_eq!(
            object["kind"] == "Secret",
            object.to_string().contains("canary-password"),
            "{object}"
        );
    }
}

#[test]
fn no_rule_has_a_wildcard_and_each_has_its_reason() {
    for values in value_sets() {
        for object in rendered(&values) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                assert!(!rule.to_string().contains('*'), "{rule}");
            }
        }
    }
    let text = std::fs::read_to_string(chart().join("templates/rbac.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let rules = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.starts_with("- apiGroups:"));
    for (index, line) in rules {
        assert!(
            index > 0 && lines[index - 1].starts_with('#'),
            "no reason before line {}: {line}",
            index + 1
        );
    }
}

#[test]
fn a_list_of_namespaces_needs_no_cluster_role() {
    let objects = rendered(&json!({ "watchNamespaces": ["shop", "mail"], "rbac": { "aggregateRoles": false } }));
    assert!(of_kind(&objects, "ClusterRole").is_empty() && of_kind(&objects, "ClusterRoleBinding").is_empty());
    let places = |kind: &str| -> Vec<String> {
        of_kind(&objects, kind)
            .iter()
            .map(|role| format!("{}/{}", role["metadata"]["namespace"], role["metadata"]["name"]))
            .collect()
    };
    let expected = [
        r#""kanchi-system"/"kanchi-operator-leader""#,
        r#""mail"/"kanchi-operator""#,
        r#""shop"/"kanchi-operator""#,
    ];
    for kind in ["Role", "RoleBinding"] {
        let mut found = places(kind);
        found.sort();
        assert_eq!(found, expected);
    }
    let deployment = of_kind(&objects, "Deployment")[0].to_string();
    assert!(deployment.contains("--namespaces=mail,shop"), "{deployment}");
}

#[test]
fn one_role_names_the_lease_and_only_its_creation_is_unnamed() {
    let objects = rendered(&json!({}));
    let role = of_kind(&objects, "Role")[0];
    let rules: Vec<&Value> = role["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["resources"] == json!(["leases"]))
        .collect();
    assert_eq!(rules.len(), 2);
    for rule in rules {
        assert_eq!(
            rule["verbs"] == json!(["create"]),
            rule["resourceNames"].is_null(),
            "{rule}"
        );
    }
    assert!(
        of_kind(&objects, "Deployment")[0]
            .to_string()
            .contains("--lease-name=kanchi-operator")
    );
}

#[test]
fn definitions_are_kept_and_can_be_left_out() {
    let keep = |values: &Value| {
        let objects = rendered(values);
        of_kind(&objects, "CustomResourceDefinition")
            .first()
            .map(|crd| crd["metadata"]["annotations"]["helm.sh/resource-policy"].clone())
    };
    assert_eq!(keep(&json!({})), Some(json!("keep")));
    assert_eq!(keep(&json!({ "crds": { "keep": false } })), Some(Value::Null));
    assert_eq!(keep(&json!({ "crds": { "enabled": false } })), None);
}

#[test]
fn the_charts_definition_is_the_generated_one() {
    let objects = rendered(&json!({}));
    let crd = of_kind(&objects, "CustomResourceDefinition")[0];
    let generated = serde_json::to_value(&kanchi_crds::crds().unwrap()[0]).unwrap();
    assert_eq!(crd["spec"], generated["spec"]);
    assert_eq!(crd["metadata"]["name"], generated["metadata"]["name"]);
}

#[test]
fn selectors_never_carry_a_version_and_select_their_pods() {
    for object in rendered(&everything()) {
        let (selector, labels) = (
            &object["spec"]["selector"]["matchLabels"],
            &object["spec"]["template"]["metadata"]["labels"],
        );
        if labels.is_null() {
            continue;
        }
        for (key, value) in selector.as_object().unwrap() {
            assert!(!key.contains("version") && !key.contains("chart"), "{key}");
            assert_eq!(&labels[key], value);
        }
    }
}

#[test]
fn a_digest_is_used_instead_of_the_tag() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let image = json!({ "repository": "r.example/operator", "tag": "1.2.3", "digest": digest });
    let objects = rendered(&json!({ "operator": { "image": image }, "monitor": { "image": { "tag": "4.5.6" } } }));
    let container = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], format!("r.example/operator@{digest}"));
    assert!(
        container["args"]
            .to_string()
            .contains("--monitor-image=ghcr.io/kanchi-io/kanchi-monitor:4.5.6")
    );
}

#[test]
fn two_replicas_get_a_disruption_budget_and_one_does_not() {
    let budgets = |replicas: i32| {
        of_kind(
            &rendered(&json!({ "operator": { "replicas": replicas } })),
            "PodDisruptionBudget",
        )
        .len()
    };
    assert_eq!((budgets(1), budgets(2)), (0, 1));
}

#[test]
fn the_plain_manifests_are_the_rendered_chart() {
    for binary in HELMS.iter() {
        let output = Command::new(root().join("manifests/render.sh"))
            .arg("--check")
            .env("HELM", binary)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
