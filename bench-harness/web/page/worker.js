import { answer } from "./engine.js";

onmessage = event => answer(event.data, message => postMessage(message));
