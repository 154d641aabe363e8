// A daemon's state for the page to show, and a stand-in for the app behind it.
import { mockIPC } from "@tauri-apps/api/mocks";
import type {
  Answer,
  ApiError,
  Call,
  ChannelInfo,
  LocalDevice,
  PeerInfo,
  Published,
  Snapshot,
  Subscribed,
} from "../src/generated/api";

export const stick: LocalDevice = {
  class: "block",
  name: "sdb",
  path: "/dev/sdb",
  model: "SanDisk Ultra",
  serial: "4C53",
  size: 32_000_000_000,
  block_size: 512,
  removable: true,
  read_only: false,
  used_by: [],
};

export const attic: PeerInfo = {
  name: "attic",
  fingerprint: "a".repeat(64),
  paired: true,
  present: true,
  addresses: ["10.0.0.2:6287"],
  connected: true,
  error: null,
};

export const backup: ChannelInfo = {
  peer: "attic",
  channel: "backup",
  label: "backup",
  class: "block",
  description: "16 MB image",
  read_only: false,
  writer: null,
  present: true,
  subscribed: false,
};

export const shared: Published = {
  channel: "ultra",
  label: "Ultra",
  device: "/dev/sdb",
  class: "block",
  description: "SanDisk Ultra",
  size: 32_000_000_000,
  read_only: false,
  state: "ready",
  reason: null,
  allowed: ["attic"],
  holders: [],
};

export const used: Subscribed = {
  channel: "attic/backup",
  label: "backup",
  class: "block",
  description: "16 MB image",
  way: "file",
  node: "/run/netbus/attic/backup.img",
  state: "active",
  read_only: true,
  give_up_after_seconds: null,
  since: "2026-01-01T00:00:00Z",
  error: null,
};

export function snapshot(parts: Partial<Snapshot["status"]> & Partial<Omit<Snapshot, "status">> = {}): Snapshot {
  const { devices = [], channels = [], ...status } = parts;
  return {
    status: {
      name: "desk",
      fingerprint: "d".repeat(64),
      port: 6287,
      version: "0.1.0",
      pairing_open_seconds: null,
      published: [],
      subscribed: [],
      peers: [],
      warnings: [],
      ...status,
    },
    devices,
    channels,
  };
}

/** Answers the page's calls; gives those that were made. */
export function answering(answer: (call: Call) => Answer | ApiError): Call[] {
  const calls: Call[] = [];
  mockIPC((command, payload) => {
    if (command !== "call") return undefined;
    const { call } = payload as { call: Call };
    calls.push(call);
    const result = answer(call);
    if ("kind" in result && "message" in result) throw result;
    return result;
  });
  return calls;
}
