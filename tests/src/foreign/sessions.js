// A server that forgets to close its sessions: some KiB a second, given in its argument, among much more that is released.
const sessions = [];
let sent = 0, opened = 0;

function openSession() {
  sessions.push(Buffer.alloc(3000, opened & 255));
}

function renderPage() {
  sent += Buffer.alloc(20000, 'x').length;
}

function parseRequest() {
  const headers = [];
  for (let i = 0; i < 10; i++) headers.push(Buffer.from('header ' + i + 'y'.repeat(9000)));
  sent += Buffer.concat(headers).length;
}

const rate = (Number(process.argv[2]) || 17) * 1024 / 3000, begun = Date.now();
setInterval(() => {
  for (let i = 0; i < 5; i++) {
    renderPage();
    parseRequest();
  }
  for (; opened < (Date.now() - begun) / 1000 * rate; opened++) openSession();
}, 5);
