//! git and Subversion.

use super::{check_everywhere, mounted, need, run_at};

#[test]
fn heavy_git_clones_collects_and_checks_a_repository() {
    let sandbox = mounted();
    need(&sandbox, "git", "git");
    sandbox
        .sh(r#"
            git config --global user.name tester
            git config --global user.email tester@example.org
            git config --global init.defaultBranch main
            git config --global gc.auto 0
            git config --global core.fsync all
            git init -q origin
            cd origin
            for round in $(seq 12); do
                for file in $(seq 20); do
                    mkdir -p "dir$((file % 5))"
                    { echo "round $round of file $file"; seq $((round * file)); } > "dir$((file % 5))/file$file"
                done
                head -c 40000 /dev/urandom > "binary$((round % 3))"
                ln -sfn "dir$((round % 5))" link
                git add -A
                git commit -q -m "round $round"
                git tag "round-$round"
            done
            git rev-parse HEAD > ../head
        "#)
        .ok();
    // Not through hard links or a local copy: the objects pass index-pack, which reads its own half-written file.
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        r#"
            git clone -q --no-local "file://$PWD/origin" $ROOT/clone
            git clone -q --local $ROOT/clone $ROOT/linked
            cd $ROOT/clone
            git branch -q side round-3
            git switch -q side
            echo side > side; git add side; git commit -q -m side
            git switch -q main
            git merge -q -m merged side
            git worktree add -q ../worktree side
            git repack -q -a -d -f
            git gc -q --aggressive --prune=now
            git -C ../linked fetch -q origin
        "#,
    );
    let said = check_everywhere(
        &sandbox,
        r#"
            cd $ROOT/clone
            git fsck --full --strict --no-dangling 2>&1
            [ "$(git status --porcelain)" = "" ] || { git status; exit 1; }
            git merge-base --is-ancestor "$(cat ~/head)" main
            git log --format=%H%s main
            git rev-list --objects --all | git cat-file --batch-check='%(objectname) %(objecttype) %(objectsize)' > /dev/null
            git archive main | sha256sum
            git -C $ROOT/linked fsck --full 2>&1
            rm -rf ~/fresh
            git clone -q --no-local $ROOT/clone ~/fresh
            diff -r --no-dereference --exclude .git $ROOT/clone ~/fresh
        "#,
    );
    assert!(said.contains("round 12") && said.contains("merged"), "{said}");
}

#[test]
fn heavy_subversion_creates_loads_dumps_and_verifies() {
    let sandbox = mounted();
    need(&sandbox, "svnadmin", "subversion");
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        r#"
            svnadmin create $ROOT/repo
            svn mkdir -q -m layout file://$ROOT/repo/trunk file://$ROOT/repo/tags
            svn checkout -q file://$ROOT/repo/trunk $ROOT/work
            cd $ROOT/work
            for round in $(seq 8); do
                mkdir -p dir$round
                seq $((round * 500)) > dir$round/numbers
                head -c 20000 /dev/urandom > binary
                svn add -q --force .
                svn commit -q -m "round $round"
            done
            svn move -q dir1 moved; svn rm -q dir2; svn propset -q note value dir3
            svn commit -q -m 'one directory moved'
            svn copy -q -m tag file://$ROOT/repo/trunk file://$ROOT/repo/tags/one
            svnadmin pack -q $ROOT/repo
            svnadmin dump -q $ROOT/repo > $ROOT/dump
            svnadmin create $ROOT/loaded
            svnadmin load -q $ROOT/loaded < $ROOT/dump
            svnadmin hotcopy -q $ROOT/repo $ROOT/hot
            svnadmin hotcopy -q --incremental $ROOT/repo $ROOT/hot
        "#,
    );
    let said = check_everywhere(
        &sandbox,
        r#"
            for repo in repo loaded hot; do
                svnadmin verify -q $ROOT/$repo
                svnlook youngest $ROOT/$repo
                svnadmin dump -q $ROOT/$repo | cmp - $ROOT/dump
            done
            sha256sum < $ROOT/dump
            rm -rf ~/out
            svn export -q file://$ROOT/repo/trunk ~/out
            test ! -e ~/out/dir2
            tail -n 1 ~/out/moved/numbers
            svn status $ROOT/work
        "#,
    );
    assert!(said.starts_with("11\n11\n11\n"), "{said}");
    assert!(said.ends_with("500\n"), "the working copy has no changes: {said}");
}
