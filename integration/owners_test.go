package integration

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// owner is a line of owners.json.
type owner struct {
	Kind, Comm, Largest string
	UID                 uint32
	Pid                 int
	Files               uint64
	CommittedBytes      uint64 `json:"committed_bytes"`
	InMemoryBytes       uint64 `json:"in_memory_bytes"`
	PagedBytes          uint64 `json:"paged_bytes"`
	SoftFaults          uint64 `json:"soft_faults"`
	HardFaults          uint64 `json:"hard_faults"`
	ReadBytes           uint64 `json:"read_bytes"`
	WrittenBytes        uint64 `json:"written_bytes"`
}

// owner is a user's line, or with a pid a process's.
func (m *mount) owner(kind string, uid uint32, pid int) (owner, bool) {
	m.t.Helper()
	var list struct{ Owners []owner }
	m.json(".proc/owners.json", &list)
	for _, o := range list.Owners {
		if o.Kind == kind && o.UID == uid && o.Pid == pid {
			return o, true
		}
	}
	return owner{}, false
}

// TestOwners: a program that ended is its user's, one that lives has a line of its own, and who faults is told from who
// wrote.
func TestOwners(t *testing.T) {
	const mib = 1 << 20
	const user, other = 12345, 12346
	m := mountMemfs(t, options{})
	must(t, os.Chmod(m.path(), 0777))
	as := func(uid uint32, script string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = m.path()
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd
	}
	if out, err := as(user, "head -c 3M /dev/urandom > big; head -c 1M /dev/urandom > small; sync big small").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	u, ok := m.owner("user", user, 0)
	if !ok || u.Files != 2 || u.CommittedBytes != 4*mib || u.InMemoryBytes+u.PagedBytes != 4*mib || u.WrittenBytes != 4*mib || u.Largest != "/big" {
		t.Errorf("the user who wrote two files is listed as %+v", u)
	}

	// This process writes and stays alive.
	fd, err := unix.Open(m.path("mine"), unix.O_RDWR|unix.O_CREAT, 0644)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, make([]byte, 2*mib))
	must(t, err)
	must(t, unix.Fsync(fd))
	p, ok := m.owner("process", uint32(os.Getuid()), os.Getpid())
	comm := readAll(t, "/proc/self/comm")
	if !ok || p.Files != 1 || p.CommittedBytes != 2*mib || p.WrittenBytes != 2*mib || p.Largest != "/mine" || p.Comm+"\n" != comm {
		t.Errorf("the process that wrote a file is listed as %+v", p)
	}

	// Somebody reads what has left memory: his faults, not his file.
	m.ctl("trim")
	m.ctl("empty standby")
	if out, err := as(other, "cat big > /dev/null").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o, ok := m.owner("user", other, 0)
	if !ok || o.HardFaults != 3*mib/4096 || o.ReadBytes < 3*mib || o.Files != 0 || o.CommittedBytes != 0 {
		t.Errorf("the user who read a paged file is listed as %+v", o)
	}
	if u, _ = m.owner("user", user, 0); u.PagedBytes == 0 || u.InMemoryBytes+u.PagedBytes != 4*mib || u.HardFaults != 0 {
		t.Errorf("the user whose files were paged out is listed as %+v", u)
	}
}
