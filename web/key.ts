// Has the key of whoever is in front of the page sign what a form says, and sends the form. The form says in its attributes what is to be signed.
import { type Signer, Refusal, injected, newPasskey, onPaper, paper, passkey, wallet } from './key/signer';
import type { TypedData } from './key/typed';

const CODE_CHARS = 25;

function field(form: HTMLFormElement, name: string): HTMLInputElement {
  const found = form.elements.namedItem(name);
  if (!(found instanceof HTMLInputElement)) throw new Error(`the form has no field ${name}`);
  return found;
}

// As people type it (Crockford's base 32), as the server reads it.
function plainCode(typed: string): string {
  const plain = typed.replace(/[\s-]/g, '').toUpperCase().replace(/O/g, '0').replace(/[IL]/g, '1');
  if (plain.length !== CODE_CHARS) throw new Refusal(`The code has ${CODE_CHARS} letters and digits; these are ${plain.length}.`);
  return plain;
}

async function signed(form: HTMLFormElement, by: Signer): Promise<string> {
  const { key, text = '', signer } = form.dataset;
  switch (key) {
    case 'text':
      // Another site may want to log in elsewhere with what is signed here.
      if (!text.split('\n').includes(`Address: ${location.host}`)) throw new Refusal('This page would log you in somewhere else.');
      return by.text(text);
    case 'code':
      return by.text(text + plainCode(field(form, 'code').value));
    case 'typed':
      if (by.account !== signer?.toLowerCase()) throw new Refusal('This is another key than the one that the study belongs to.');
      return by.typed(JSON.parse(text) as TypedData);
    default:
      throw new Error('nobody knows what this form wants');
  }
}

function key(form: HTMLFormElement, way: string): Promise<Signer> {
  switch (way) {
    case 'new':
      return newPasskey(form.dataset.site ?? location.host);
    case 'passkey':
      return passkey();
    case 'wallet':
      return wallet();
    default:
      return paper(form.querySelector<HTMLInputElement>('[data-paper]')?.value ?? '');
  }
}

// What went wrong, for the person; what nobody foresaw also for whoever looks into it.
function words(error: unknown): string {
  if (error instanceof Refusal) return error.message;
  console.warn(error);
  return 'That did not work. You can try again.';
}

// One thing at a time: a browser asks for one passkey.
async function alone(within: HTMLElement, work: () => Promise<string>): Promise<void> {
  const said = within.querySelector<HTMLElement>('[data-said]');
  const buttons = [...within.querySelectorAll('button')].filter(button => !button.disabled);
  for (const button of buttons) button.disabled = true;
  if (said) said.textContent = 'Waiting for your key …';
  const outcome = await work().catch(words);
  if (said) said.textContent = outcome;
  for (const button of buttons) button.disabled = false;
}

function attach(form: HTMLFormElement): void {
  const scripted = form.querySelector<HTMLElement>('[data-scripted]');
  const buttons = [...form.querySelectorAll<HTMLButtonElement>('button[data-by]')];
  const first = buttons[0];
  if (!scripted || !first) return;
  const by = (way: string) =>
    alone(form, async () => {
      if (form.dataset.key === 'code') plainCode(field(form, 'code').value);
      const signer = await key(form, way);
      const signature = await signed(form, signer);
      field(form, 'account').value = signer.account;
      field(form, 'signature').value = signature;
      const onPaper = form.querySelector<HTMLInputElement>('[data-paper]');
      if (onPaper) onPaper.value = '';
      form.submit();
      return 'Signed. Sending …';
    });
  for (const button of buttons) {
    if (button.dataset.by === 'wallet') button.hidden = !injected();
    button.addEventListener('click', () => void by(button.dataset.by ?? ''));
  }
  // Whoever presses Enter means the first button, unless he filled in a signature himself.
  form.addEventListener('submit', event => {
    if (field(form, 'signature').value.trim()) return;
    event.preventDefault();
    void by(first.dataset.by ?? '');
  });
  scripted.hidden = false;
}

function attachPaper(block: HTMLElement): void {
  const written = block.querySelector('[data-written]');
  block.querySelector('[data-show]')?.addEventListener('click', () => {
    void alone(block, async () => {
      const { account, code } = await onPaper();
      if (account !== block.dataset.paperOf?.toLowerCase()) throw new Refusal('This passkey has another key than the one that you are logged in with.');
      if (written) written.textContent = code;
      return 'Write it down, and close this page.';
    });
  });
  const hidden = block.closest<HTMLElement>('[data-scripted]');
  if (hidden) hidden.hidden = false;
}

for (const form of document.querySelectorAll<HTMLFormElement>('form[data-key]')) attach(form);
for (const block of document.querySelectorAll<HTMLElement>('[data-paper-of]')) attachPaper(block);
