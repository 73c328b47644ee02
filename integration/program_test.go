package integration

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is a real program on the mount that waits for its input to end.
type program struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

// startProgram runs a shell script in the root of the mount until it says "ready", and leaves it waiting.
func (m *mount) startProgram(t *testing.T, script string) *program {
	t.Helper()
	p := &program{cmd: exec.Command("bash", "-c", script+"\necho ready\nread line")}
	p.cmd.Dir = m.dir
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	p.out = bufio.NewReader(out)
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			t.Fatalf("the program ended early: %v", err)
		}
		if line == "ready\n" {
			return p
		}
		t.Log(strings.TrimSuffix(line, "\n"))
	}
}

// TestSelf gives a real program a process, and takes it away again when the program is killed.
func TestSelf(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	committed := func() uint64 { return m.counters("meminfo").get(t, "Committed_AS") }
	before := committed()
	p := m.startProgram(t, `exec 3<>.proc/self/ctl
		echo 'r = VirtualAlloc 0x20000000 0x400000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE' >&3
		echo 'Write $r+0x1000 68656c6c6f' >&3
		echo 'Read $r+0x1000 5' >&3
		read -u 3 a && read -u 3 b && read -u 3 c && echo "$a / $b / $c"`)
	pid := fmt.Sprint(p.cmd.Process.Pid)
	folder := m.path(".proc", pid)
	if got := committed(); got < before+4096 {
		t.Errorf("%d kB are committed, %d before: the program's 4 MiB are missing", got, before)
	}
	status := string(mustRead(t, filepath.Join(folder, "status")))
	if !strings.Contains(status, pid) || !strings.Contains(status, "bash") {
		t.Errorf("status is\n%s", status)
	}
	if ps := string(mustRead(t, m.path(".proc/ps"))); !strings.Contains(ps, pid) {
		t.Errorf("ps is\n%s", ps)
	}
	wantErrno(t, "ending a program's process", os.Remove(folder), unix.EPERM)
	wantErrno(t, "a simulated process with a pid for a name", os.Mkdir(m.path(".proc/99999999"), 0o755), unix.EINVAL)
	open, err := os.Open(filepath.Join(folder, "status")) // does not keep the process
	must(t, err)
	defer open.Close()
	must(t, p.cmd.Process.Signal(syscall.SIGKILL))
	_ = p.cmd.Wait()
	gone := func() bool {
		_, err := os.Stat(folder)
		return os.IsNotExist(err) && committed() < before+256
	}
	if !within(20*time.Second, gone) {
		t.Errorf("after kill -9 of the program %d kB are committed, %d before", committed(), before)
	}
	if _, err := io.ReadAll(open); err != nil {
		t.Errorf("reading a file of a process that is gone: %v", err)
	}
}

// TestSelfMany has many short programs use .proc/self, each alone with its own memory; none of them leaves anything.
func TestSelfMany(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	before := m.counters("meminfo").get(t, "Committed_AS")
	out, err := tryRun(m.dir, "", "bash", "-c", `for i in $(seq 60); do (
			exec 3<>.proc/self/ctl
			echo 'r = VirtualAlloc 0x20000000 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE' >&3 || exit 1
			[ "$(readlink .proc/self)" != "$BASHPID" ] || exit 1
			echo "Write \$r $(printf %08x $i)" >&3 && echo 'Read $r 4' >&3 || exit 1
			read -u 3; read -u 3; read -u 3 last
			case "$last" in *$(printf %08x $i)) ;; *) echo "$i: $last"; exit 1;; esac
		) & [ $((i % 12)) != 0 ] || wait; done; wait`)
	if err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	if !within(20*time.Second, func() bool { return strings.Count(string(mustRead(t, m.path(".proc/ps"))), "\n") == 2 }) {
		t.Errorf("programs that have exited are left:\n%s", mustRead(t, m.path(".proc/ps")))
	}
	if got := m.counters("meminfo").get(t, "Committed_AS"); got > before+256 {
		t.Errorf("%d kB are committed, %d before", got, before)
	}
}
