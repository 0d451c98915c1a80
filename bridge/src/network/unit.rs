//! What a node has beside its data whatever its program is. Pure.

use super::plan::{Node, Plan, Site};

/// A file beside a node's data, by its name, and whether it is a program.
pub(super) struct NodeFile {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) is_program: bool,
}

/// A unit for systemd. `environment` names the program to `start.sh`.
pub(super) fn unit(plan: &Plan, site: &Site, node: &Node, environment: &str) -> NodeFile {
    let (folder, what) = (format!("node-{}", node.number), format!("Node {}", node.number));
    unit_of(plan, site, &folder, &what, environment)
}

/// The same for what runs in any folder of a site.
pub(super) fn unit_of(plan: &Plan, site: &Site, folder: &str, what: &str, environment: &str) -> NodeFile {
    let network = &plan.name;
    let directory = plan.directory.display();
    let text = format!(
        r#"# To be put into /etc/systemd/system, with this folder at {directory}.
[Unit]
Description={what} of site {} in ledger network {network}
After=network-online.target
Wants=network-online.target

[Service]
User=pacs-bridge-network
ExecStart={directory}/{folder}/start.sh
Environment={environment}
Restart=always
RestartSec=5
# It writes its state when it ends.
TimeoutStopSec=120
LimitNOFILE=65536
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictSUIDSGID=yes
LockPersonality=yes
ReadWritePaths={directory}/{folder}

[Install]
WantedBy=multi-user.target
"#,
        site.name
    );
    NodeFile { name: format!("{network}-{folder}.service"), text, is_program: false }
}
