// The app behind the page: its view, what can be asked of it, and what came of that.
import { invoke } from "@tauri-apps/api/core";
import { listen } from "@tauri-apps/api/event";
import type { Answer, ApiError, Call, View } from "./generated/api";

/** What the window shows. */
export const bus = $state<{ view: View; notices: Notice[] }>({ view: { engine: "connecting" }, notices: [] });

/** What came of something that was done: told once, then gone. */
export interface Notice {
  id: number;
  kind: "done" | "failed";
  text: string;
  details: string[];
}

/** Follows the app's view for ever. */
export async function connect(): Promise<void> {
  await listen<View>("view", (event) => {
    bus.view = event.payload;
  });
  await listen<ApiError>("failed", (event) => fail(event.payload));
  bus.view = await invoke<View>("view");
}

/** Asks the daemon for something. What it refuses becomes a notice, and nothing. */
export async function call(request: Call): Promise<Answer | undefined> {
  try {
    return await invoke<Answer>("call", { call: request });
  } catch (error) {
    fail(error);
    return undefined;
  }
}

/** Asks the daemon for something whose refusal the caller shows. */
export async function attempt(request: Call): Promise<Answer | ApiError> {
  try {
    return await invoke<Answer>("call", { call: request });
  } catch (error) {
    return asApiError(error);
  }
}

export async function startEngine(): Promise<void> {
  await invoke("start_engine").catch(fail);
}

export async function openNode(channel: string): Promise<void> {
  await invoke("open_node", { channel }).catch(fail);
}

/** Plays a disc; what keeps it from being played becomes a notice. */
export async function play(channel: string): Promise<void> {
  await invoke("play", { channel }).catch(fail);
}

/** Tells what went well. It goes away by itself. */
export function say(text: string): void {
  const id = tell("done", text, []);
  setTimeout(() => dismiss(id), 6000);
}

export function dismiss(id: number): void {
  bus.notices = bus.notices.filter((notice) => notice.id !== id);
}

export function isError(value: Answer | ApiError): value is ApiError {
  return "kind" in value && "message" in value;
}

function fail(error: unknown): void {
  const { message, causes } = asApiError(error);
  tell("failed", message, causes);
}

function asApiError(error: unknown): ApiError {
  if (typeof error === "object" && error !== null && "message" in error && "kind" in error) return error as ApiError;
  return { kind: "internal", message: String(error), causes: [] };
}

let next = 0;

function tell(kind: Notice["kind"], text: string, details: string[]): number {
  next += 1;
  bus.notices = [...bus.notices, { id: next, kind, text, details }];
  return next;
}
