package integration

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMemory has a program use its process's address space in every way, and kills it.
func TestMemory(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	before := m.counters("meminfo")
	program := compileC(t, "testdata/memory.c")
	cmd := exec.Command(program, short("2000", "200"), "wait")
	cmd.Dir = m.dir
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	text := make([]byte, 0, 1<<16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			n, err := out.Read(text[len(text):cap(text)])
			text = text[:len(text)+n]
			if err != nil || strings.HasSuffix(string(text), "ready\n") || strings.HasSuffix(string(text), "failed\n") {
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Error("the program hangs")
	}
	must(t, cmd.Process.Kill())
	<-done
	_ = cmd.Wait()
	if got := string(text); got != "ready\n" {
		t.Errorf("the program says\n%s", got)
	}
	now := m.counters("meminfo")
	if !within(20*time.Second, func() bool {
		now = m.counters("meminfo")
		return now.get(t, "Committed_AS") <= before.get(t, "Committed_AS")+256
	}) {
		t.Errorf("after kill -9 %d kB are committed, %d before", now.get(t, "Committed_AS"), before.get(t, "Committed_AS"))
	}
	if ps := string(mustRead(t, m.path(".proc/ps"))); strings.Count(ps, "\n") != 2 {
		t.Errorf("ps is\n%s", ps)
	}
}

// TestOvercommit has several programs fill 64 simulated processes with four times the memory in all, through write(2) and
// through mappings, and find every byte again.
func TestOvercommit(t *testing.T) {
	const processes, programs, memory = 64, 4, 16 << 20
	m := mountMemfs(t, options{memory: "16M", pageFile: "256M"})
	before := m.counters("meminfo").get(t, "Committed_AS")
	program := compileC(t, "testdata/overcommit.c")
	failed := make(chan string, programs)
	for i := range programs {
		go func() {
			out, err := tryRun(m.dir, "", program, m.path(".proc"), strconv.Itoa(i*processes/programs), strconv.Itoa(processes/programs),
				strconv.Itoa(4*memory/processes), short("2", "1"))
			if err != nil {
				out += err.Error()
			}
			failed <- out
		}()
	}
	for range programs {
		if out := <-failed; out != "" {
			t.Error(out)
		}
	}
	v := m.vmstat()
	if v.get(t, "pages_output") < 3*memory/4096 || v.get(t, "pages_input") < 2*memory/4096 {
		t.Errorf("%d pages were written out and %d read in: too few for four times the memory", v.get(t, "pages_output"), v.get(t, "pages_input"))
	}
	if got := m.counters("meminfo").get(t, "Committed_AS"); got > before+256 {
		t.Errorf("%d kB are committed, %d before", got, before)
	}
}
