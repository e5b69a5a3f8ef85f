//! Hosts with a network between them that can be parted: network namespaces of this machine, each with a name of its
//! own. They take root, and end with their values.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use super::Outcome;

/// Several hosts at a switch. This machine is at it, too.
pub struct Network {
    // A namespace of its own: what is bridged here would pass this machine's packet filter.
    switch: String,
    pub hosts: Vec<Host>,
}

/// One of them.
pub struct Host {
    name: String,
    switch: String,
    // Its end of the cable, at the switch.
    cable: String,
    pub address: String,
}

impl Network {
    /// As many hosts as there are names.
    pub fn start(names: &[&str]) -> Outcome<Network> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let id = std::process::id();
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test processes side by side have nets of their own, and so have the tests of one.
        let net = format!("10.{}.{}", 40 + (id >> 3) % 200, (id % 8) * 32 + u32::from(next % 32));
        let switch = format!("switch-{id}-{next}");
        let mut network = Network { switch: switch.clone(), hosts: Vec::new() };
        ip(&format!("netns add {switch}")).map_err(|error| {
            format!("hosts are network namespaces, which take root and iproute2: {error}")
        })?;
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        let own = format!("pixel{id}-{next}");
        ip(&format!("link add {own} type veth peer name port netns {switch}"))?;
        ip(&format!("address add {net}.1/24 dev {own}"))?;
        ip(&format!("link set {own} up"))?;
        ip(&format!("-n {switch} link set port master bridge up"))?;
        for (n, name) in names.iter().enumerate() {
            let (name, address) = (format!("{name}-{id}-{next}"), format!("{net}.{}", n + 2));
            ip(&format!("netns add {name}"))?;
            let cable = format!("port{n}");
            ip(&format!("-n {switch} link add {cable} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {switch} link set {cable} master bridge up"))?;
            ip(&format!("-n {name} address add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
            network.hosts.push(Host { name, switch: switch.clone(), cable, address });
        }
        Ok(network)
    }
}

impl Host {
    /// What starts a program on it.
    pub fn command(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_string).to_vec()
    }

    /// The same, for a program that sees the host's name.
    pub fn named_command(&self) -> Vec<String> {
        let mut command = self.command();
        let named = ["unshare", "--uts", "--", "sh", "-c", r#"hostname "$0" && exec "$@""#];
        command.extend(named.map(str::to_string));
        command.push(self.name.clone());
        command
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pulls its cable, or plugs it in again: nobody is told.
    pub fn cut_off(&self, is_cut: bool) -> Outcome {
        let state = if is_cut { "down" } else { "up" };
        ip(&format!("-n {} link set {} {state}", self.switch, self.cable))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            // What runs there was started by the test, and has outlived whom it was started by.
            let running = Command::new("ip").args(["netns", "pids", &host.name]).output();
            let running = running.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            for process in running.unwrap_or_default().split_whitespace() {
                let _ = Command::new("kill").args(["-9", process]).stderr(Stdio::null()).status();
            }
            let _ = ip(&format!("netns delete {}", host.name));
        }
        // The cables go with it.
        let _ = ip(&format!("netns delete {}", self.switch));
    }
}

fn ip(arguments: &str) -> Outcome {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}
