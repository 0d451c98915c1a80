// A link to one study has its token behind the #: it is put into the form, and out of the address, where the next person at this screen would find it.
export function takeLink(): void {
  const form = document.querySelector<HTMLFormElement>('form[data-shared]');
  const token = location.hash.slice(1);
  const field = form?.elements.namedItem('token');
  if (!token || !(field instanceof HTMLInputElement)) return;
  field.value = token;
  history.replaceState(null, '', location.pathname);
}
