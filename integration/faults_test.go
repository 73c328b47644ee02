package integration

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFaultsReplayed records the faults of a run, and finds that after a replay the same run reads nothing from the page
// file.
func TestFaultsReplayed(t *testing.T) {
	const pages = 2000
	m := mountMemfs(t, options{})
	must(t, writeContent(m.path("file"), 5, pages*4096))
	ctl, list := m.path(".proc/files/file/ctl"), m.path(".proc/files/file/faults")
	m.ctl("trim")
	m.ctl("empty standby")

	touched := []int{1700, 3, 900, 4, 1999, 64, 63}
	visit := func() counters {
		fd, err := unix.Open(m.path("file"), unix.O_RDONLY, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)) // one request a page
		before := m.vmstat()
		touch(t, fd, touched)
		after := m.vmstat()
		return counters{"hard": after.get(t, "hard_faults") - before.get(t, "hard_faults"),
			"soft": after.get(t, "transition_faults") - before.get(t, "transition_faults")}
	}
	must(t, echo(ctl, "faults start"))
	visit()
	must(t, echo(ctl, "faults stop"))

	var recorded struct {
		Faults []struct {
			Offset, Length, Tid uint64
			Kind                string
			HardPages           int `json:"hard_pages"`
		}
		Missed uint64
	}
	m.json(".proc/files/file/faults.json", &recorded)
	if len(recorded.Faults) != len(touched) || recorded.Missed != 0 {
		t.Fatalf("%d faults are recorded, want %d: %+v", len(recorded.Faults), len(touched), recorded)
	}
	for i, f := range recorded.Faults {
		if f.Offset != uint64(touched[i])*4096 || f.Length != 4096 || f.Kind == "valid" || f.Tid == 0 {
			t.Errorf("fault %d is recorded as %+v, but page %d was touched", i, f, touched[i])
		}
	}

	// Replayed from a copy, as `cat list > ctl` does, and from the file itself.
	copied := readAll(t, list)
	for _, replay := range []func(){
		func() { must(t, os.WriteFile(ctl, []byte(copied), 0)) },
		func() { run(t, m.path(), "sh", "-c", "cat .proc/files/file/faults > .proc/files/file/ctl") },
	} {
		m.ctl("trim")
		m.ctl("empty standby")
		replay()
		if answer := readAll(t, ctl); !strings.HasPrefix(answer, "OK prefetched=") {
			t.Errorf("the replay was answered %q", answer)
		}
		if got := visit(); got["hard"] != 0 || got["soft"] != uint64(len(touched)) {
			t.Errorf("after a replay the same run has %d hard and %d soft faults, want 0 and %d", got["hard"], got["soft"], len(touched))
		}
	}

	// A list that is wrong does nothing, and says what is wrong.
	if err := os.WriteFile(ctl, []byte("4096 4096\nthe end\n"), 0); err != unix.EINVAL && !strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("a bad list: %v, want EINVAL", err)
	}
	if answer := readAll(t, ctl); !strings.HasPrefix(answer, `ERR EINVAL "the end" is no fault`) {
		t.Errorf("a bad list was answered %q", answer)
	}

	// A full recording says so; the memory of all of them goes back with the file.
	must(t, echo(ctl, "faults start 2"))
	m.ctl("trim")
	visit()
	if text := readAll(t, list); strings.Count(text, "\n") != 4 || !strings.Contains(text, "# full: 5 more faults were not recorded") {
		t.Errorf("a recording of two faults says:\n%s", text)
	}
	must(t, os.Remove(m.path("file")))
}
