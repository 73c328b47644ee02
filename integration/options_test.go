package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountWords are the options of a mount in the host's table, and those of its super block.
func mountWords(dir string) (mount, super []string) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, nil
	}
	for line := range strings.Lines(string(b)) {
		head, tail, _ := strings.Cut(line, " - ")
		if f, s := strings.Fields(head), strings.Fields(tail); len(f) > 5 && len(s) > 2 && f[4] == dir {
			mount, super = strings.Split(f[5], ","), strings.Split(s[2], ",")
		}
	}
	return mount, super
}

// nobody is a user without rights.
const nobodyID = 65534

// asNobody makes a program run as that user.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID}}
	return cmd
}

// flagEffects tries on a file system what its mount flags allow: programs, setuid programs, devices. The answers can be
// compared with another file system's.
func flagEffects(t *testing.T, dir string) string {
	t.Helper()
	id := filepath.Join(dir, "id")
	program, err := os.ReadFile("/usr/bin/id")
	must(t, err)
	must(t, os.WriteFile(id, program, 0o755))
	must(t, os.Chmod(id, 0o755|os.ModeSetuid))
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	out, err := asNobody(exec.Command(id, "-u")).Output()
	effects := fmt.Sprintf("program as %q", strings.TrimSpace(string(out)))
	if err != nil {
		effects = fmt.Sprint("program: ", errors.Unwrap(err))
	}
	fd, err := unix.Open(filepath.Join(dir, "null"), unix.O_RDWR, 0)
	if err == nil {
		unix.Close(fd)
	}
	return effects + fmt.Sprint(", device: ", err)
}

// atimeEffects reads a file and a directory whose access times are older than the other times, and then newer. It names
// those whose access time the reading changed. settle makes sure that the host asks the file system.
func atimeEffects(t *testing.T, dir string, settle func()) string {
	t.Helper()
	file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
	must(t, os.WriteFile(file, block(1, 4096), 0o644))
	must(t, os.MkdirAll(sub, 0o755))
	var changed []string
	for _, name := range []string{file, sub} {
		for _, kind := range []string{"stale", "fresh"} {
			// ctime cannot be set: what is fresh lies in the future.
			atime, mtime := time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			if kind == "fresh" {
				atime = time.Now().Add(time.Hour)
			}
			must(t, os.Chtimes(name, atime, mtime))
			settle()
			var err error
			if name == file {
				_, err = os.ReadFile(name)
			} else {
				_, err = os.ReadDir(name)
			}
			must(t, err)
			var st unix.Stat_t
			must(t, unix.Stat(name, &st))
			if st.Atim.Nano() != atime.UnixNano() {
				changed = append(changed, kind+" "+filepath.Base(name))
			}
		}
	}
	return strings.Join(changed, ", ")
}

// TestMountFlags mounts with the words of mount(8): the host's table shows what it shows for a tmpfs that was mounted so,
// and programs, setuid bits, devices and access times are what they are there.
func TestMountFlags(t *testing.T) {
	needMount(t)
	for _, list := range []string{
		"defaults", "nosuid", "nodev,suid", "noexec", "exec,nosuid,nodev,suid,dev", "noatime", "nodiratime", "strictatime",
		"strictatime,nodiratime", "relatime,sync,dirsync",
	} {
		t.Run(list, func(t *testing.T) {
			oracle := filepath.Join(scratch(t), "tmpfs")
			must(t, os.Mkdir(oracle, 0o755))
			run(t, "", "mount", "-t", "tmpfs", "-o", list, "none", oracle)
			defer func() { run(t, "", "umount", oracle) }()
			m := mountMemfs(t, options{memory: "32M", noPageFile: true, flags: []string{"-o", list}})
			wantMount, wantSuper := mountWords(oracle)
			mount, super := mountWords(m.dir)
			if !slices.Equal(mount, wantMount) {
				t.Errorf("the mount is %q, tmpfs's %q", mount, wantMount)
			}
			for _, word := range []string{"ro", "rw", "sync", "dirsync"} {
				if slices.Contains(super, word) != slices.Contains(wantSuper, word) {
					t.Errorf("%s: the super block is %q, tmpfs's %q", word, super, wantSuper)
				}
			}
			if got, want := flagEffects(t, m.dir), flagEffects(t, oracle); got != want {
				t.Errorf("%s; on tmpfs %s", got, want)
			}
			if got, want := atimeEffects(t, m.dir, func() { m.ctl("trim") }), atimeEffects(t, oracle, func() {}); got != want {
				t.Errorf("reading changes the access time of %q; on tmpfs of %q", got, want)
			}
		})
	}
}

// TestReadOnly mounts read-only: nothing can be changed, the control files can be read, and the mount can be made
// writable and back, as the kernel has it.
func TestReadOnly(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", noPageFile: true, flags: []string{"-o", "rw,ro"}})
	wantErrno(t, "create", os.WriteFile(m.path("file"), nil, 0o644), unix.EROFS)
	wantErrno(t, "mkdir", os.Mkdir(m.path("dir"), 0o755), unix.EROFS)
	wantErrno(t, "a command", m.tryCtl("trim"), unix.EROFS)
	out, err := exec.Command(memfsBinary, "trim", m.dir).CombinedOutput()
	oneLineRefusal(t, "memfs trim", string(out), err, 1, "read-only", "remount,rw")
	m.check()
	run(t, "", memfsBinary, "info", m.dir)

	run(t, "", memfsBinary, "mount", "-o", "remount,rw", m.dir)
	f, err := os.Create(m.path("file"))
	must(t, err)
	out, err = exec.Command(memfsBinary, "mount", "-o", "remount,ro", m.dir).CombinedOutput()
	oneLineRefusal(t, "remount,ro with a file open for writing", string(out), err, 1, "busy")
	_, err = f.Write(block(1, 1<<20))
	must(t, err)
	must(t, f.Close())
	run(t, "", "mount", "-i", "-o", "remount,ro", m.dir) // by the kernel alone
	wantErrno(t, "unlink", os.Remove(m.path("file")), unix.EROFS)
	wantFile(t, m.path("file"), block(1, 1<<20))
	if mount, _ := mountWords(m.dir); mount[0] != "ro" {
		t.Errorf("the mount is %q after remount,ro", mount)
	}
}

// TestRemountAccessTimes changes how access times are kept on a live mount: by the kernel alone, and by memfs, which
// leaves the other flags as they are.
func TestRemountAccessTimes(t *testing.T) {
	oracle := mountTmpfs(t, "size=16M")
	m := mountMemfs(t, options{memory: "32M", noPageFile: true, flags: []string{"-o", "nosuid,noatime"}})
	trim := func() { m.ctl("trim") }
	if got := atimeEffects(t, m.dir, trim); got != "" {
		t.Errorf("noatime: changed %q", got)
	}
	for _, c := range []struct {
		words string
		flags uintptr
		do    func()
	}{
		{"strictatime", unix.MS_STRICTATIME, func() { run(t, "", "mount", "-i", "-o", "remount,strictatime", m.dir) }},
		{"relatime", unix.MS_RELATIME, func() { run(t, "", memfsBinary, "mount", "-o", "remount,relatime", m.dir) }},
		{"nodiratime", unix.MS_NODIRATIME | unix.MS_RELATIME,
			func() { run(t, "", memfsBinary, "mount", "-o", "remount,nodiratime", m.dir) }},
		{"noatime", unix.MS_NOATIME, func() { run(t, "", memfsBinary, "mount", "-o", "remount,noatime,diratime", m.dir) }},
	} {
		must(t, unix.Mount("", oracle, "", unix.MS_REMOUNT|c.flags, ""))
		want := atimeEffects(t, oracle, func() {})
		c.do()
		got := ""
		if !within(10*time.Second, func() bool { got = atimeEffects(t, m.dir, trim); return got == want }) {
			t.Errorf("after remount,%s reading changes the access time of %q; on tmpfs of %q", c.words, got, want)
		}
		if mount, _ := mountWords(m.dir); !slices.Contains(mount, "nosuid") {
			t.Errorf("remount,%s took nosuid away: %q", c.words, mount)
		}
	}
}

// TestSizeFits mounts with nothing but a size, and with a size beyond the memory: that much can be written, in one file
// and in many small ones.
func TestSizeFits(t *testing.T) {
	needMount(t)
	lists := []string{"size=40M", "size=40M,noswap", "memory=16M,size=120M", "memory=16M,nr_blocks=20k,nr_inodes=30k"}
	for _, flags := range short(lists, lists[:2]) {
		t.Run(flags, func(t *testing.T) {
			dir := filepath.Join(scratch(t), "mnt")
			must(t, os.Mkdir(dir, 0o755))
			run(t, "", memfsBinary, "mount", "-o", flags, dir)
			defer func() { run(t, "", memfsBinary, "umount", dir) }()
			const mebi = 1 << 20
			size := map[string]int64{"size=40M": 40 * mebi, "size=40M,noswap": 40 * mebi, "memory=16M,size=120M": 120 * mebi,
				"memory=16M,nr_blocks=20k,nr_inodes=30k": 80 * mebi}[flags]
			must(t, writeContent(filepath.Join(dir, "file"), 1, size))
			wantContent(t, filepath.Join(dir, "file"), 1, size)
			must(t, os.Remove(filepath.Join(dir, "file")))
			small := int(size / 2000 / 4096 * 4096) // whole pages: a part of one costs all of it, as on tmpfs
			for i := range 2000 {
				must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), block(i, small), 0o644))
			}
			for i := range 2000 {
				wantFile(t, filepath.Join(dir, fmt.Sprint(i)), block(i, small))
			}
		})
	}
}

// TestRootDirectory gives the root directory its owner and mode, by number and by name.
func TestRootDirectory(t *testing.T) {
	for _, list := range []string{"uid=65534,gid=1,mode=2750", "uid=nobody,gid=daemon,mode=02750"} {
		m := mountMemfs(t, options{memory: "32M", noPageFile: true, flags: []string{"-o", list}})
		var st unix.Stat_t
		must(t, unix.Stat(m.dir, &st))
		if st.Uid != nobodyID || st.Gid != 1 || st.Mode&0o7777 != 0o2750 {
			t.Errorf("%s: the root is %d:%d %o", list, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
}

// userMount is a directory of nobody's, and how nobody runs memfs with a home there, in a private namespace where the
// device is open to all, as udev has it.
func userMount(t *testing.T) (dir string, memfs func(args ...string) *exec.Cmd) {
	t.Helper()
	privateMounts(t)
	dir = helped(t)
	home := filepath.Dir(dir)
	device := filepath.Join(scratch(t), "fuse")
	must(t, unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
	must(t, os.Chmod(device, 0o666))
	must(t, unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""))
	for _, name := range []string{home, dir} {
		must(t, os.Chown(name, nobodyID, nobodyID))
	}
	memfs = func(args ...string) *exec.Cmd {
		cmd := asNobody(exec.Command(memfsBinary, args...))
		cmd.Dir = home
		cmd.Env = append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, daemonEnv(home)...)
		cmd.WaitDelay = 5 * time.Second
		return cmd
	}
	return dir, memfs
}

// TestUserMount is a mount of a user's own, through fusermount3: theirs alone, without setuid programs and devices, with
// the flags that fusermount3 knows.
func TestUserMount(t *testing.T) {
	dir, memfs := userMount(t)
	file := filepath.Join(dir, "file")
	for _, list := range []string{"noatime,noexec", "strictatime,nodiratime,sync"} {
		if out, err := memfs("mount", "--memory=32M", "-o", list, dir).CombinedOutput(); err != nil {
			t.Fatalf("memfs mount -o %s: %v\n%s", list, err, out)
		}
		mount, super := mountWords(dir)
		for _, word := range []string{"nosuid", "nodev", "user_id=65534", "default_permissions"} {
			if !slices.Contains(append(mount, super...), word) {
				t.Errorf("-o %s: the mount is not %s: %q %q", list, word, mount, super)
			}
		}
		if slices.Contains(super, "allow_other") {
			t.Errorf("-o %s: others are let in: %q", list, super)
		}
		for word := range strings.SplitSeq(list, ",") {
			if word != "strictatime" && word != "nodiratime" && !slices.Contains(append(mount, super...), word) {
				t.Errorf("-o %s: the mount is not %s: %q %q", list, word, mount, super)
			}
		}
		if _, err := os.Stat(dir); !errors.Is(err, unix.EACCES) {
			t.Errorf("root looks into a user's own mount: %v", err)
		}
		// strictatime, which fusermount3 has no word for, is kept all the same: a read counts though atime is the newest.
		script := `set -e
			echo hello >$0; test "$(cat $0)" = hello; memfs=$1; dir=${0%/*}
			touch -a -d 2040-01-01 $0; $memfs trim $dir >/dev/null; cat $0 >/dev/null; stat -c %X $0
			test "$(stat -c %u $dir)" = 65534; test "$($memfs check $dir)" = ok`
		sh := asNobody(exec.Command("sh", "-c", script, file, memfsBinary))
		out, err := sh.CombinedOutput()
		if err != nil {
			t.Errorf("-o %s: the owner: %v\n%s", list, err, out)
		}
		if kept := strings.TrimSpace(string(out)) == fmt.Sprint(time.Date(2040, 1, 1, 0, 0, 0, 0, time.Local).Unix()); kept !=
			strings.Contains(list, "noatime") {
			t.Errorf("-o %s: after a read the access time is %s", list, out)
		}
		other := exec.Command("ls", dir)
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1, Gid: 1}}
		if out, err := other.CombinedOutput(); err == nil {
			t.Errorf("another user lists a user's own mount: %s", out)
		}
		if out, err := memfs("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("memfs umount: %v\n%s", err, out)
		}
	}
}

// TestUserRefusals: what only root may have is refused to a user in one line, and other users are let in only where
// /etc/fuse.conf has user_allow_other.
func TestUserRefusals(t *testing.T) {
	dir, memfs := userMount(t)
	conf := filepath.Join(scratch(t), "fuse.conf")
	must(t, os.WriteFile(conf, nil, 0o644))
	must(t, unix.Mount(conf, "/etc/fuse.conf", "", unix.MS_BIND, ""))
	for list, status := range map[string]int{"suid": 2, "nosuid,dev": 2, "nosymfollow": 2, "allow_other": 1} {
		out, err := memfs("mount", "--memory=32M", "--pagefile=none", "-o", list, dir).CombinedOutput()
		word := list[strings.LastIndexByte(list, ',')+1:]
		oneLineRefusal(t, "memfs mount -o "+list, string(out), err, status, word)
	}
	must(t, os.WriteFile(conf, []byte("user_allow_other\n"), 0o644))
	if out, err := memfs("mount", "--memory=32M", "--pagefile=none", "-o", "allow_other", dir).CombinedOutput(); err != nil {
		t.Fatalf("memfs mount -o allow_other: %v\n%s", err, out)
	}
	if _, err := os.ReadDir(dir); err != nil {
		t.Errorf("root in a user's mount with allow_other: %v", err)
	}
	if out, err := memfs("umount", dir).CombinedOutput(); err != nil {
		t.Fatalf("memfs umount: %v\n%s", err, out)
	}
}

// TestRemountSize changes memory and size of a live mount by mount -o remount, as tmpfs's size can be.
func TestRemountSize(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	must(t, writeContent(m.path("file"), 1, 20<<20))
	remount := func(words string) (string, error) {
		return tryRun("", "", memfsBinary, "mount", "-o", "remount,"+words, m.dir)
	}
	total := func() uint64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(m.dir, &st))
		return st.Blocks * uint64(st.Bsize)
	}
	for _, c := range []struct {
		words string
		total uint64
	}{{"size=100M", 100 << 20}, {"memory=32M,size=50M", 50 << 20}, {"ro,size=60M", 60 << 20}, {"rw,size=70M", 70 << 20}} {
		if out, err := remount(c.words); err != nil {
			t.Fatalf("remount,%s: %v\n%s", c.words, err, out)
		}
		if got := total(); got != c.total {
			t.Errorf("after remount,%s statfs has %d bytes, want %d", c.words, got, c.total)
		}
	}
	if got := m.counters("meminfo").get(t, "MemTotal"); got != 32<<10 {
		t.Errorf("memory is %d kB after remount,memory=32M", got)
	}
	out, err := exec.Command(memfsBinary, "mount", "-o", "remount,size=10M", m.dir).CombinedOutput()
	oneLineRefusal(t, "remount,size=10M with 20M in it", string(out), err, 1, "size 10M is too small", "20M")
	wantContent(t, m.path("file"), 1, 20<<20)
}
