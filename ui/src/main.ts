import { mount } from "svelte";
import App from "./App.svelte";
import "./app.css";
import { connect } from "./bus.svelte";
import { speak } from "./words/words.svelte";

const target = document.getElementById("app");
if (target === null) throw new Error("The page has no place for the app");
await speak(navigator.languages);
mount(App, { target });
await connect();
