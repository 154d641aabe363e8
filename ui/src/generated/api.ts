// Written from the Rust types by `NETBUS_WRITE_TYPES=1 cargo test types`.

export type View = { "engine": "connecting" } | { "engine": "gone", 
/**
 * Why, in a whole sentence.
 */
reason: string, 
/**
 * What has become of the attempt to start it, in a whole sentence; `None` while there was none.
 */
start: string | null, } | { "engine": "running", 
/**
 * What it said last.
 */
snapshot: Snapshot, };

export type Snapshot = { 
/**
 * What it is and does.
 */
status: Status, 
/**
 * The devices of this machine.
 */
devices: Array<LocalDevice>, 
/**
 * What peers offer to this machine.
 */
channels: Array<ChannelInfo>, };

export type Call = { "verb": "status" } | { "verb": "latency" } | { "verb": "devices" } | { "verb": "peers" } | { "verb": "pair", 
/**
 * The peer's name, or its address as `HOST[:PORT]`.
 */
peer: string, 
/**
 * The code that the peer shows.
 */
code: PairingCode, } | { "verb": "pair_show_code" } | { "verb": "pair_cancel" } | { "verb": "unpair", 
/**
 * The peer's name or fingerprint.
 */
peer: string, } | { "verb": "publish", 
/**
 * An absolute path, or a name from [`Call::Devices`].
 */
device: string, 
/**
 * The display name to publish it under; without one the class suggests it.
 */
name: string | null, 
/**
 * Whether nobody may write.
 */
read_only: boolean, 
/**
 * The names or fingerprints of the peers that may use it; empty means those that are paired now.
 */
to: Array<string>, } | { "verb": "unpublish", 
/**
 * The channel's name or label.
 */
channel: string, } | { "verb": "revoke", 
/**
 * The channel's name or label.
 */
channel: string, 
/**
 * Whose lease; without it, everybody's.
 */
peer: string | null, 
/**
 * Whether the owner knows the loss. Unconfirmed, nothing happens and the answer tells the loss.
 */
confirmed: boolean, } | { "verb": "channels" } | { "verb": "subscribe", 
/**
 * `PEER/CHANNEL`.
 */
target: string, 
/**
 * How to present the device (`file`, `disk`, `nbd`); without it, the class's best way.
 */
way: string | null, 
/**
 * Whether to ask for a reader's lease.
 */
read_only: boolean, 
/**
 * Where the peer is, as `HOST[:PORT]`, where discovery does not reach.
 */
address: string | null, 
/**
 * How many seconds applications wait for a host that is away before they get errors; without it, for ever.
 */
give_up_after_seconds: number | null, } | { "verb": "unsubscribe", 
/**
 * The channel as `HOST/CHANNEL`, or just its name where that is unambiguous.
 */
channel: string, 
/**
 * Whether applications that use it get errors from here on, at once, and an earlier call that waits for the
 * host is given up; without it, they are a reason to refuse, and so are writes that are not safe yet.
 */
force: boolean, } | { "verb": "swap", 
/**
 * The channel as `HOST/CHANNEL`, or just its name where that is unambiguous.
 */
channel: string, 
/**
 * An absolute path, or a name from [`Call::Devices`]; without it the device that has the place is let go, and the
 * channel waits for its host.
 */
to: string | null, } | { "verb": "watch" } | { "verb": "shutdown" };

export type PairingCode = string;

export type Answer = { "answer": "done" } | { "answer": "status" } & Status | { "answer": "latency" } & Report | { "answer": "devices", 
/**
 * The devices of this machine.
 */
devices: Array<LocalDevice>, } | { "answer": "peers", 
/**
 * Paired peers and those that discovery sees.
 */
peers: Array<PeerInfo>, } | { "answer": "paired", 
/**
 * The peer's name.
 */
peer: string, 
/**
 * Its fingerprint, 64 hexadecimal digits.
 */
fingerprint: string, } | { "answer": "code", 
/**
 * The code to type at the other machine.
 */
code: PairingCode, 
/**
 * How long it is good, in seconds.
 */
expires_in_seconds: number, } | { "answer": "unpaired", 
/**
 * The peer's name.
 */
peer: string, } | { "answer": "published" } & Published | { "answer": "unpublished", 
/**
 * The channel's name.
 */
channel: string, } | { "answer": "would_revoke", 
/**
 * The channel's name.
 */
channel: string, 
/**
 * Whose leases would be taken; empty when nobody has one.
 */
holders: Array<Holder>, 
/**
 * What would be lost, in whole sentences that name the holder.
 */
loss: string, } | { "answer": "revoked", 
/**
 * The channel's name.
 */
channel: string, 
/**
 * Whose leases were taken.
 */
holders: Array<Holder>, } | { "answer": "channels", 
/**
 * What peers offer to this machine.
 */
channels: Array<ChannelInfo>, } | { "answer": "node", 
/**
 * Where applications find the device: a path, or an address where there are no paths.
 */
node: string, 
/**
 * The channel as `HOST/CHANNEL`.
 */
channel: string, 
/**
 * How it is presented.
 */
way: string, 
/**
 * What carries its requests, for a way that has more than one.
 */
path?: NodePath | null, 
/**
 * Whether changes are refused.
 */
read_only: boolean, } | { "answer": "swapped", 
/**
 * The channel as `HOST/CHANNEL`.
 */
channel: string, 
/**
 * The device of this machine that serves it now; `None` when it is its host's again.
 */
device: string | null, 
/**
 * For how long requests have been held up, in milliseconds; where they still wait for the host, until now.
 */
pause_milliseconds: number, } | { "answer": "unsubscribed", 
/**
 * The channel as `HOST/CHANNEL`.
 */
channel: string, };

export type ApiError = { 
/**
 * What programs go by.
 */
kind: ErrorKind, 
/**
 * What people read: whole sentences that say what failed and what to do.
 */
message: string, 
/**
 * What lies beneath, outermost first; may be empty.
 */
causes: Array<string>, };

export type ErrorKind = "not_found" | "ambiguous" | "already_exists" | "in_use" | "refused" | "not_paired" | "wrong_code" | "pairing_closed" | "unavailable" | "invalid" | "needs_confirmation" | "overloaded" | "internal";

export type Status = { 
/**
 * The name that peers see.
 */
name: string, 
/**
 * The fingerprint of its key, 64 hexadecimal digits.
 */
fingerprint: string, 
/**
 * The TCP port it listens on for peers.
 */
port: number, 
/**
 * The program's version.
 */
version: string, 
/**
 * How long the pairing window stays open, in seconds; `None` while it is closed.
 */
pairing_open_seconds: number | null, 
/**
 * What it publishes.
 */
published: Array<Published>, 
/**
 * What it uses of peers.
 */
subscribed: Array<Subscribed>, 
/**
 * Paired peers and those that discovery sees.
 */
peers: Array<PeerInfo>, 
/**
 * What the user should know, in whole sentences.
 */
warnings: Array<string>, };

export type Published = { 
/**
 * The channel's name: `[A-Za-z0-9_-]{1,64}`, unique at this machine.
 */
channel: string, 
/**
 * Its display name.
 */
label: string, 
/**
 * Where the device is, or was last.
 */
device: string, 
/**
 * The class's name.
 */
class: string, 
/**
 * The class's words on the device; empty while it is not known.
 */
description: string, 
/**
 * Its size in bytes, where it has one that is known.
 */
size: number | null, 
/**
 * Whether nobody may write.
 */
read_only: boolean, 
/**
 * How it is.
 */
state: PublishedState, 
/**
 * Why it is so, where that needs words.
 */
reason: string | null, 
/**
 * The names of the peers that may use it.
 */
allowed: Array<string>, 
/**
 * Who uses it now.
 */
holders: Array<Holder>, };

export type PublishedState = "ready" | "in_use" | "busy" | "absent" | "failed";

export type Holder = { 
/**
 * The peer's name.
 */
peer: string, 
/**
 * Whether it may write.
 */
write: boolean, 
/**
 * Since when.
 */
since: string, 
/**
 * Whether it can be reached now.
 */
connected: boolean, };

export type Subscribed = { 
/**
 * The channel as `HOST/CHANNEL`.
 */
channel: string, 
/**
 * Its display name.
 */
label: string, 
/**
 * The class's name.
 */
class: string, 
/**
 * The class's words on the device, as its host has told of it last; empty before that.
 */
description: string, 
/**
 * How it is presented.
 */
way: string, 
/**
 * What carries its requests, for a way that has more than one.
 */
path?: NodePath | null, 
/**
 * Where applications find the device; `None` while there is no node.
 */
node: string | null, 
/**
 * The device of this machine that serves it in the place of its host.
 */
local?: string | null, 
/**
 * How it is.
 */
state: SubscribedState, 
/**
 * Whether changes are refused.
 */
read_only: boolean, 
/**
 * How many seconds applications wait for a host that is away before they get errors; `None` is for ever.
 */
give_up_after_seconds: number | null, 
/**
 * Since when it is in this state.
 */
since: string, 
/**
 * Why it waits or failed, in whole sentences.
 */
error: string | null, };

export type SubscribedState = "connecting" | "active" | "waiting" | "faulted";

export type NodePath = "kernel" | "loop";

export type PeerInfo = { 
/**
 * Its name.
 */
name: string, 
/**
 * Its fingerprint, 64 hexadecimal digits; `None` while it is only seen, not proved.
 */
fingerprint: string | null, 
/**
 * Whether it is paired with this machine.
 */
paired: boolean, 
/**
 * Whether discovery sees it now.
 */
present: boolean, 
/**
 * Where it is, as `ADDRESS:PORT`.
 */
addresses: Array<string>, 
/**
 * Whether there is a session with it.
 */
connected: boolean, 
/**
 * What keeps the two apart, in a whole sentence: another key under a known name, for one.
 */
error: string | null, };

export type ChannelInfo = { 
/**
 * The host's name.
 */
peer: string, 
/**
 * The channel's name.
 */
channel: string, 
/**
 * Its display name.
 */
label: string, 
/**
 * The class's name.
 */
class: string, 
/**
 * The class's words on the device; empty while it is not there.
 */
description: string, 
/**
 * Whether it is published for reading only.
 */
read_only: boolean, 
/**
 * Who writes to it now, by name.
 */
writer: string | null, 
/**
 * Whether the device is there now.
 */
present: boolean, 
/**
 * Whether this machine uses it.
 */
subscribed: boolean, };

export type LocalDevice = { 
/**
 * The class's name.
 */
class: string, 
/**
 * The name to publish it by: `sda`, `sda1`, `1-1.2`.
 */
name: string, 
/**
 * Where it is: `/dev/sda`.
 */
path: string, 
/**
 * Maker and model, or what is known instead.
 */
model: string, 
/**
 * Serial number or WWN, where there is one.
 */
serial: string | null, 
/**
 * What it is in a word or two, for a class of many kinds: `music player`.
 */
kind?: string | null, 
/**
 * Size in bytes; 0 for one that has none.
 */
size: number, 
/**
 * Logical block size in bytes; 0 for one that has no blocks.
 */
block_size: number, 
/**
 * Whether it is made to be carried away.
 */
removable: boolean, 
/**
 * Whether the system forbids writing to it.
 */
read_only: boolean, 
/**
 * Where it, a partition of it or what is built on it is mounted or used.
 */
used_by: Array<string>, };

export type Report = { 
/**
 * What peers use of this machine, since they opened it over the present link.
 */
published: Array<ChannelReport>, 
/**
 * What this machine uses of peers, since its node was made.
 */
subscribed: Array<ChannelReport>, };

export type ChannelReport = { 
/**
 * The channel: `HOST/CHANNEL` where this machine uses it, its name where a peer does.
 */
channel: string, 
/**
 * The peer at the other end, by name.
 */
peer: string, 
/**
 * The parts, by operation and then in the order in which a request passes through them. Without those that none
 * has passed through.
 */
components: Array<ComponentReport>, };

export type ComponentReport = { 
/**
 * What the requests do.
 */
operation: Operation, 
/**
 * The part.
 */
component: Component, 
/**
 * How many requests were measured: the first of each operation, then one in 16.
 */
count: number, 
/**
 * Half of them took no longer, to within an eighth.
 */
median_nanoseconds: number, 
/**
 * 99 of 100 took no longer, to within an eighth.
 */
p99_nanoseconds: number, 
/**
 * The mean of those that were measured, exact.
 */
mean_nanoseconds: number, };

export type Component = "frontend" | "queue" | "encrypt" | "link" | "decrypt" | "disk" | "back";

export type Operation = "read" | "write" | "flush";
