package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// init keeps the main thread to the main goroutine: /proc/self is that thread's view, and no test may change it.
func init() { runtime.LockOSThread() }

// privateMounts gives the test's thread, and the programs that it starts, a mount namespace of their own. The thread ends
// with the test. Functions that read /proc/self see the main thread's namespace; mountWords sees this one.
func privateMounts(t *testing.T) {
	t.Helper()
	needMount(t)
	runtime.LockOSThread() // and never unlocked
	must(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// installHelpers puts programs into /sbin, which only this test sees, and nothing else: names are links to the command.
func installHelpers(t *testing.T, names ...string) {
	t.Helper()
	fuse, fuseErr := os.ReadFile("/sbin/mount.fuse3")
	must(t, unix.Mount("none", "/sbin", "tmpfs", 0, "mode=755"))
	for _, name := range names {
		if name == "mount.fuse" {
			must(t, fuseErr)
			must(t, os.WriteFile("/sbin/mount.fuse", fuse, 0o755))
			continue
		}
		must(t, os.Symlink(memfsBinary, "/sbin/"+name))
	}
}

// helped is a directory to mount on in a private namespace. At the end nothing is mounted there.
func helped(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(scratch(t), "mnt")
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		if mount, _ := mountWords(dir); mount != nil {
			t.Errorf("%s was left mounted", dir)
			_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		}
	})
	return dir
}

// status is the exit status of a program and what it wrote.
func status(name string, args ...string) (int, string) {
	cmd := exec.Command(name, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// ended fails the test unless a daemon ends by itself.
func ended(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if !within(10*time.Second, func() bool { return !alive(pid) }) {
			t.Errorf("process %d is still there: %s", pid, procLine(pid))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// TestMountHelper mounts with mount(8), as each of the types there are, with the options of fstab, and unmounts with
// umount(8).
func TestMountHelper(t *testing.T) {
	for _, c := range []struct {
		fsType string
		names  []string
	}{
		{"memfs", []string{"mount.memfs"}},
		{"fuse.memfs", []string{"mount.fuse.memfs"}},
		{"fuse.memfs", []string{"mount.fuse", "memfs"}}, // which looks for memfs in the usual places
	} {
		t.Run(fmt.Sprint(c.fsType, " ", c.names), func(t *testing.T) {
			privateMounts(t)
			dir := helped(t)
			installHelpers(t, c.names...)
			run(t, "", "mount", "-t", c.fsType, "-o", "memory=32M,nosuid,noatime,mode=700,nr_inodes=1k,noswap", "things", dir)
			pid := daemonPID(dir)
			if pid == 0 {
				t.Fatal("mount(8) returned, but the mount does not answer")
			}
			mount, _ := mountWords(dir)
			if want := []string{"rw", "nosuid", "noatime"}; !slices.Equal(mount, want) {
				t.Errorf("the mount is %q, want %q", mount, want)
			}
			out := strings.Fields(run(t, "", "findmnt", "-n", "-o", "SOURCE,FSTYPE", dir))
			if !slices.Equal(out, []string{"things", "fuse.memfs"}) {
				t.Errorf("findmnt says %q", out)
			}
			must(t, os.WriteFile(filepath.Join(dir, "file"), block(1, 1<<20), 0o644))
			wantFile(t, filepath.Join(dir, "file"), block(1, 1<<20))
			if code, out := status("mount", "-t", c.fsType, "-o", "memory=32M", "things", dir); code == 0 ||
				!strings.Contains(out, "already") {
				t.Errorf("mounting twice: exit status %d, %s", code, out)
			}
			run(t, "", "mount", "-o", "remount,noexec", dir)
			if mount, _ := mountWords(dir); !slices.Contains(mount, "noexec") || !slices.Contains(mount, "nosuid") {
				t.Errorf("after remount,noexec the mount is %q", mount)
			}
			pids := family(pid)
			run(t, "", "umount", dir)
			ended(t, pids...)
		})
	}
}

// TestFstab mounts from fstab: by name, all of it, once only, and with what is wrong said in one line.
func TestFstab(t *testing.T) {
	privateMounts(t)
	dir := helped(t)
	installHelpers(t, "mount.memfs", "mount.fuse.memfs")
	fstab := filepath.Join(scratch(t), "fstab")
	must(t, os.WriteFile(fstab, nil, 0o644))
	must(t, unix.Mount(fstab, "/etc/fstab", "", unix.MS_BIND, ""))
	line := func(options string) {
		must(t, os.WriteFile(fstab, fmt.Appendf(nil, "scratch %s memfs %s 0 0\n", dir, options), 0o644))
	}
	line("memory=32M,noswap,nodev,nofail,x-systemd.automount,comment=mine")
	for _, args := range [][]string{{dir}, {"-a"}} {
		run(t, "", "mount", args...)
		pids := family(daemonPID(dir))
		if mount, _ := mountWords(dir); !slices.Equal(mount, []string{"rw", "nodev", "relatime"}) {
			t.Errorf("mount %v: the mount is %q", args, mount)
		}
		run(t, "", "mount", "-a") // it is there already
		if n := strings.Count(run(t, "", "findmnt", "-n", "-o", "TARGET", dir), dir); n != 1 {
			t.Errorf("mount -a again: mounted %d times", n)
		}
		run(t, "", "mount", "-o", "remount,ro", dir)
		wantErrno(t, "create", os.Mkdir(filepath.Join(dir, "x"), 0o755), unix.EROFS)
		run(t, "", "umount", dir)
		ended(t, pids...)
	}
	for options, want := range map[string]string{
		"memory=32M,colour=red": "colour=red: unknown option", "memory=lots": "memory=lots",
		"size=64M,memory=16M,noswap": "does not fit", "inode32": "inode32",
	} {
		line(options)
		code, out := status("mount", dir)
		if code == 0 || strings.Count(out, "\n") != 1 || !strings.Contains(out, want) {
			t.Errorf("fstab with %s: exit status %d, %q; want one line with %q", options, code, out, want)
		}
	}
	line("noauto,memory=32M,noswap")
	run(t, "", "mount", "-a")
	if mount, _ := mountWords(dir); mount != nil {
		t.Error("mount -a mounted what is noauto")
	}
}

// TestMountHelperContract calls the helper as mount(8) does, with each of its flags and in any order.
func TestMountHelperContract(t *testing.T) {
	privateMounts(t)
	dir := helped(t)
	helper := filepath.Join(scratch(t), "mount.memfs")
	must(t, os.Symlink(memfsBinary, helper))
	const small = "memory=32M,noswap"
	umount := func() {
		pids := family(daemonPID(dir))
		run(t, "", "umount", dir)
		ended(t, pids...)
	}
	for _, c := range []struct {
		args    string
		code    int
		mounted bool
		lines   int
	}{
		{"none DIR -o rw," + small, 0, true, 0},
		{"-n -o rw -v none -o " + small + " DIR -t memfs", 0, true, 1},
		{"none DIR -sn -o " + small + ",bogus=1", 0, true, 0},
		{"none DIR -f -o " + small, 0, false, 0},
		{"none DIR -o " + small + ",bogus=1", 1, false, 1},
		{"none DIR -q", 1, false, 1},
		{"none", 1, false, 1},
		{"none DIR/none -o " + small, 32, false, 1},
		{"none DIR -o " + small + ",size=1G", 32, false, 1},
		{"none DIR -o remount,ro", 32, false, 1},
		{"none DIR -N /no/such -o " + small, 2, false, 1},
	} {
		code, out := status(helper, strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))...)
		mount, _ := mountWords(dir)
		if code != c.code || (mount != nil) != c.mounted || strings.Count(out, "\n") != c.lines {
			t.Errorf("mount.memfs %s: exit status %d, mounted %v, %q; want %d, %v, %d lines",
				c.args, code, mount != nil, out, c.code, c.mounted, c.lines)
		}
		if mount != nil {
			umount()
		}
	}
	// A directory that is not empty is no obstacle to mount(8).
	must(t, os.WriteFile(filepath.Join(dir, "hidden"), nil, 0o644))
	run(t, "", helper, "none", dir, "-o", small)
	wantEntries(t, dir)
	umount()
	wantEntries(t, dir, "hidden")
}

// TestMountNamespace mounts in another mount namespace, as mount -N has it.
func TestMountNamespace(t *testing.T) {
	privateMounts(t)
	dir := helped(t)
	installHelpers(t, "mount.memfs")
	// The other namespace is that of a process, which has the directory but not this mount.
	other := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000")
	out, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	_, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	ns := fmt.Sprintf("/proc/%d/ns/mnt", other.Process.Pid)
	run(t, "", "mount", "-N", ns, "-t", "memfs", "-o", "memory=32M,noswap", "none", dir)
	if mount, _ := mountWords(dir); mount != nil {
		t.Error("it is mounted here")
		run(t, "", "umount", dir)
		return
	}
	there := run(t, "", "nsenter", "--mount="+ns, "cat", dir+"/.proc/version", "/proc/self/mountinfo")
	var pid int
	for line := range strings.Lines(there) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Process:" {
			_, err = fmt.Sscan(f[1], &pid)
			must(t, err)
		}
	}
	if pid == 0 || !strings.Contains(there, " "+dir+" ") {
		t.Fatalf("it is not mounted there:\n%s", there)
	}
	pids := family(pid)
	run(t, "", "umount", "-N", ns, dir)
	ended(t, pids...)
}

// TestHelperAfterKill kills a daemon that mount(8) had started, and its child, while a program has its working directory
// and an open file there. Programs get an error at once, and mount(8) takes the dead mount away and mounts anew.
func TestHelperAfterKill(t *testing.T) {
	privateMounts(t)
	dir := helped(t)
	installHelpers(t, "mount.memfs")
	const list = "memory=32M,noswap"
	run(t, "", "mount", "-t", "memfs", "-o", list, "none", dir)
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, block(1, 1<<20), 0o644))
	held, err := os.OpenFile(file, os.O_RDWR, 0)
	must(t, err)
	defer held.Close()
	resident := exec.Command("sleep", "1000")
	resident.Dir = dir
	must(t, resident.Start())
	defer func() { _ = resident.Process.Kill(); _ = resident.Wait() }()
	cwd := fmt.Sprintf("/proc/%d/cwd/", resident.Process.Pid)

	pids := family(daemonPID(dir))
	for _, pid := range slices.Backward(pids) { // the daemon first
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	ended(t, pids...)
	dead := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s on the dead mount: %v, want ENOTCONN", what, err)
		}
	}
	_, err = os.Stat(file)
	dead("stat", err)
	_, err = os.Stat(cwd + "file")
	dead("stat from a working directory", err)
	_, err = os.ReadDir(dir)
	dead("readdir", err)
	dead("fsync", held.Sync())
	dead("creat", os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))

	out := run(t, "", "mount", "-t", "memfs", "-o", list, "none", dir)
	if out != "" {
		t.Errorf("mount(8) says %q on its standard output", out)
	}
	wantEntries(t, dir)
	must(t, os.WriteFile(file, block(2, 1<<20), 0o644))
	wantFile(t, file, block(2, 1<<20))
	_, err = os.Stat(cwd + "file")
	dead("stat from the old working directory", err)
	if mounts := strings.Count(run(t, "", "findmnt", "-n", "-o", "TARGET"), dir); mounts != 1 {
		t.Errorf("%d mounts on %s", mounts, dir)
	}
	pids = family(daemonPID(dir))
	run(t, "", "umount", dir)
	ended(t, pids...)
}

// TestHungDaemon stops a daemon. memfs umount never hangs: it says that the mount is busy, or that the daemon hangs, and
// --lazy and --force take the mount away.
func TestHungDaemon(t *testing.T) {
	stop := func(t *testing.T, pid int) {
		must(t, syscall.Kill(pid, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	}
	umount := func(args ...string) (int, string) {
		return status("timeout", append([]string{"60", memfsBinary, "umount", "--timeout=2s"}, args...)...)
	}
	t.Run("busy", func(t *testing.T) {
		dir, pageFile, pid := background(t)
		resident := exec.Command("sleep", "1000")
		resident.Dir = dir
		must(t, resident.Start())
		defer func() { _ = resident.Process.Kill(); _ = resident.Wait() }()
		pids := family(pid)
		stop(t, pid)
		if code, out := umount(dir); code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "busy") ||
			!strings.Contains(out, "--force") {
			t.Errorf("umount of a hung mount in use: exit status %d, %q", code, out)
		}
		if code, out := umount("--force", dir); code != 0 {
			t.Errorf("umount --force: exit status %d, %q", code, out)
		}
		ended(t, pids...)
		leftovers(t, dir, pageFile, pids)
	})
	t.Run("a program waits", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it is much the same")
		}
		dir, pageFile, pid := background(t)
		must(t, os.WriteFile(filepath.Join(dir, "file"), block(1, 1<<20), 0o644))
		pids := family(pid)
		stop(t, pid)
		waiting := exec.Command("cat", filepath.Join(dir, "another"))
		must(t, waiting.Start())
		defer func() { _ = waiting.Process.Kill(); _ = waiting.Wait() }()
		within(10*time.Second, func() bool { // it has come to its open, of which nobody can be told
			where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", waiting.Process.Pid))
			return strings.Contains(string(where), "fuse") || strings.Contains(string(where), "request_wait")
		})
		if code, out := umount(dir); code != 1 || !strings.Contains(out, "--force") {
			t.Errorf("umount under a program that waits: exit status %d, %q", code, out)
		}
		if code, out := umount("--force", dir); code != 0 {
			t.Errorf("umount --force: exit status %d, %q", code, out)
		}
		ended(t, pids...)
		leftovers(t, dir, pageFile, pids)
	})
	t.Run("lazy", func(t *testing.T) {
		dir, pageFile, pid := background(t)
		f, err := os.Create(filepath.Join(dir, "file"))
		must(t, err)
		resident := exec.Command("sleep", "1000")
		resident.Stdout = f
		must(t, resident.Start())
		// This process must not have the file open: a program that it starts would wait for the daemon when it closes it.
		must(t, f.Close())
		pids := family(pid)
		stop(t, pid)
		code, out := umount("--lazy", dir)
		if code != 0 || isMounted(dir) {
			t.Errorf("umount --lazy: exit status %d, mounted %v, %q", code, isMounted(dir), out)
		}
		must(t, syscall.Kill(pid, syscall.SIGCONT))
		_ = resident.Process.Kill()
		_ = resident.Wait()
		ended(t, pids...)
		leftovers(t, dir, pageFile, pids)
	})
}

// manager is a service manager's socket: it hears what is told.
func manager(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// hears fails the test unless the next thing told has all of words in it.
func hears(t *testing.T, conn *net.UnixConn, words ...string) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	must(t, err)
	for _, word := range words {
		if !slices.Contains(strings.Split(string(buf[:n]), "\n"), word) {
			t.Errorf("the service manager is told %q, want %q", buf[:n], word)
		}
	}
}

// TestService runs memfs as systemd runs a service of Type=notify: it stays in front without being told to, and says
// when it is ready and when it stops.
func TestService(t *testing.T) {
	needMount(t)
	for _, abstract := range []bool{false, true} {
		base := scratch(t)
		address := filepath.Join(base, "n")
		if abstract {
			address = "@memfs-integration-" + filepath.Base(base)
		}
		conn := manager(t, address)
		dir := filepath.Join(base, "mnt")
		must(t, os.Mkdir(dir, 0o755))
		// exec keeps the number of the shell, as systemd's child keeps its own.
		cmd := exec.Command("sh", "-c", `SYSTEMD_EXEC_PID=$$ exec "$@"`, "sh",
			memfsBinary, "mount", "--memory=32M", "--pagefile=none", dir)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+address)
		var log strings.Builder
		cmd.Stdout, cmd.Stderr = io.Discard, &log
		must(t, cmd.Start())
		hears(t, conn, "READY=1", "STATUS=mounted on "+dir+" with 32M of memory")
		if pid := daemonPID(dir); pid != cmd.Process.Pid {
			t.Errorf("process %d serves the mount, the service's is %d", pid, cmd.Process.Pid)
		}
		for _, child := range childrenOf(cmd.Process.Pid) {
			if env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child)); strings.Contains(string(env), "NOTIFY_SOCKET") {
				t.Errorf("the child process could speak to the service manager: %s", procLine(child))
			}
		}
		if abstract {
			must(t, cmd.Process.Signal(syscall.SIGTERM))
			hears(t, conn, "STOPPING=1", "STATUS=unmounting "+dir)
		} else {
			run(t, "", memfsBinary, "umount", dir)
		}
		hears(t, conn, "STOPPING=1")
		if err := cmd.Wait(); err != nil || isMounted(dir) {
			t.Errorf("the service ended with %v, mounted %v\n%s", err, isMounted(dir), log.String())
		}
	}

	// A service that cannot be started says why; a program of a service goes to the background as ever.
	base := scratch(t)
	conn := manager(t, filepath.Join(base, "n"))
	env := append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(base, "n"))
	cmd := exec.Command(memfsBinary, "mount", "--memory=32M", "--pagefile=none", filepath.Join(base, "none"))
	cmd.Env = env
	if err := cmd.Run(); err == nil {
		t.Error("mounted on a directory that is not there")
	}
	hears(t, conn, "STATUS="+filepath.Join(base, "none")+": no such directory; make it first (mkdir -p)")
	dir := filepath.Join(base, "mnt")
	must(t, os.Mkdir(dir, 0o755))
	cmd = exec.Command(memfsBinary, "mount", "--memory=32M", "--pagefile=none", dir)
	cmd.Env = append(env, "SYSTEMD_EXEC_PID=1")
	must(t, cmd.Run())
	run(t, "", memfsBinary, "umount", dir)
}

// TestSystemdUnits has systemd look at the example units.
func TestSystemdUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip(err)
	}
	dir := scratch(t)
	for from, to := range map[string]string{"memfs@.service": "memfs@mnt-x.service", "mnt-scratch.mount": "mnt-scratch.mount"} {
		unit, err := os.ReadFile(filepath.Join("../docs/systemd", from))
		must(t, err)
		text := strings.ReplaceAll(string(unit), "/usr/local/bin/memfs", memfsBinary) // which has to be there
		must(t, os.WriteFile(filepath.Join(dir, to), []byte(text), 0o644))
		if code, out := status(analyze, "verify", "--man=no", filepath.Join(dir, to)); code != 0 || strings.Contains(out, from) {
			t.Errorf("systemd-analyze verify %s: exit status %d, %s", from, code, out)
		}
	}
}
